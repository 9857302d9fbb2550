"""Q-nets: architectures, reference score, flattening, narrowing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyterrier_hypencoder import QNets, QNetSpec
from pyterrier_hypencoder.qnet import ACTIVATIONS

SPECS = [
    QNetSpec((8, 1)),
    QNetSpec((8, 8, 1)),
    QNetSpec((8, 8, 8, 8, 1)),
    QNetSpec((8, 12, 6, 1), do_residual=False),
    QNetSpec((8, 8, 8, 1), do_residual_on_last=True),
    QNetSpec((8, 8, 8, 1), do_residual_on_last=None),
    QNetSpec((8, 8, 8, 1), do_layer_norm=False),
    QNetSpec((8, 8, 8, 1), layer_norm_before_residual=False),
    *(QNetSpec((8, 8, 1), activation_type=name) for name in ACTIVATIONS),
    QNetSpec((8, 8, 8, 1), inner_product_skip=True, skip_scale=20.0, skip_gate=0.5),
    QNetSpec((8, 8, 8, 1), inner_product_skip=True, normalize_input=True),
    QNetSpec((8, 8, 1), normalize_input=True),
]


def random_qnets(spec: QNetSpec, n: int = 3, seed: int = 0) -> QNets:
    generator = torch.Generator().manual_seed(seed)
    return QNets.unflatten(torch.randn(n, spec.size, generator=generator), spec)


def random_vectors(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score_by_hand(qnets: QNets, q: int, vector: torch.Tensor) -> torch.Tensor:
    """Return the score of one document, computed step by step in float64."""
    spec = qnets.spec
    vector = vector.double()
    x = vector * len(vector) ** 0.5 / vector.norm() if spec.normalize_input else vector
    for layer in range(spec.hidden_layers):
        y = x @ qnets.weights[layer][q].double() + qnets.biases[layer][q].double()
        y = ACTIVATIONS[spec.activation_type](y)
        if spec.do_layer_norm and spec.layer_norm_before_residual:
            y = (y - y.mean()) / (y.var(unbiased=False) + 1e-5).sqrt()
        last = layer == spec.hidden_layers - 1
        on_last = spec.do_residual if spec.do_residual_on_last is None else spec.do_residual_on_last
        if (spec.do_residual and not last) or (last and on_last):
            y = y + x
        if spec.do_layer_norm and not spec.layer_norm_before_residual:
            y = (y - y.mean()) / (y.var(unbiased=False) + 1e-5).sqrt()
        x = y
    score = (x @ qnets.weights[-1][q].double()).squeeze()
    if spec.inner_product_skip:
        score = spec.skip_scale * (qnets.query_vectors[q].double() @ vector) + spec.skip_gate * score
    return score


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_score_equals_step_by_step_computation(spec):
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    expected = torch.stack([torch.stack([score_by_hand(qnets, q, x) for x in vectors]) for q in range(3)])
    torch.testing.assert_close(qnets.score(vectors).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_score_of_separate_documents_per_query_equals_shared_documents(spec):
    qnets, groups = random_qnets(spec), random_vectors(3, 5, 8)
    found = qnets.score(groups)
    assert found.shape == (3, 5)
    for q in range(3):
        torch.testing.assert_close(found[q : q + 1], qnets.select([q]).score(groups[q]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_select_scores_equal_rows_of_all_scores(spec):
    qnets, vectors = random_qnets(spec, 5), random_vectors(9, 8)
    whole = qnets.score(vectors)
    torch.testing.assert_close(qnets.select(slice(1, 4)).score(vectors[2:7]), whole[1:4, 2:7], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(qnets.select([4, 0]).score(vectors), whole[[4, 0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_flatten_unflatten_and_cat_keep_all_values(spec):
    qnets, vectors = random_qnets(spec, 4), random_vectors(3, 8)
    flat = qnets.flatten()
    assert flat.shape == (4, spec.size)
    assert torch.equal(QNets.unflatten(flat, spec).score(vectors), qnets.score(vectors))
    joined = QNets.cat([qnets.select([0]), qnets.select([1, 2, 3])])
    assert torch.equal(joined.flatten(), flat)
    assert len(joined) == 4


def test_linear_scores_are_inner_products():
    queries, vectors = random_vectors(3, 8), random_vectors(5, 8, seed=2)
    qnets = QNets.linear(queries)
    assert qnets.spec.is_linear
    torch.testing.assert_close(qnets.score(vectors), queries @ vectors.T)
    assert torch.equal(qnets.flatten(), queries)
    assert qnets.narrow(1) is qnets


@pytest.mark.parametrize("spec", [s for s in SPECS if s.hidden_layers], ids=str)
def test_narrow_to_full_width_keeps_scores(spec):
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    widest = max(spec.bias_sizes)
    torch.testing.assert_close(qnets.narrow(widest).score(vectors), qnets.score(vectors))


def test_narrow_uses_first_units_of_every_hidden_layer():
    spec = QNetSpec((8, 8, 8, 1), do_residual=False)
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    narrow = qnets.narrow(3)
    assert narrow.spec.vector_dimensions == (8, 3, 3, 1)
    w0, w1, w2 = qnets.weights[0][0][:, :3], qnets.weights[1][0][:3, :3], qnets.weights[2][0][:3]
    x = F.layer_norm(F.relu(vectors @ w0 + qnets.biases[0][0][:3]), (3,))
    x = F.layer_norm(F.relu(x @ w1 + qnets.biases[1][0][:3]), (3,))
    torch.testing.assert_close(narrow.score(vectors)[0], (x @ w2).squeeze(-1), rtol=1e-5, atol=1e-5)


def test_narrow_keeps_query_vectors_of_inner_product_skip():
    spec = QNetSpec((8, 4, 1), inner_product_skip=True, skip_gate=0.0, do_residual=False)
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    torch.testing.assert_close(qnets.narrow(2).score(vectors), qnets.query_vectors @ vectors.T)


@pytest.mark.parametrize("before", [True, False])
def test_narrow_keeps_residuals_of_remaining_units(before):
    spec = QNetSpec((8, 8, 8, 1), do_residual_on_last=True, layer_norm_before_residual=before)
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    x = vectors
    for weight, bias in zip(qnets.weights[:2], qnets.biases, strict=True):
        y = F.relu(x @ weight[0][: x.shape[1], :3] + bias[0][:3])
        x = F.layer_norm(y, (3,)) + x[:, :3] if before else F.layer_norm(y + x[:, :3], (3,))
    torch.testing.assert_close(qnets.narrow(3).score(vectors)[0], (x @ qnets.weights[2][0][:3, 0]), rtol=1e-4, atol=1e-4)
    again = qnets.narrow(5).narrow(3)
    torch.testing.assert_close(again.score(vectors), qnets.narrow(3).score(vectors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [0, -1, 9])
def test_narrow_refuses_width_out_of_range(width):
    with pytest.raises(ValueError, match="width must be between 1 and 8"):
        random_qnets(QNetSpec((8, 8, 1))).narrow(width)


def test_dropout_is_active_only_in_training():
    spec = QNetSpec((8, 8, 1), do_dropout=True, dropout_prob=0.5)
    qnets, vectors = random_qnets(spec), random_vectors(50, 8)
    assert torch.equal(qnets.score(vectors), qnets.score(vectors))
    torch.manual_seed(0)
    assert not torch.equal(qnets.score(vectors, training=True), qnets.score(vectors))
    off = QNets(dataclasses.replace(spec, do_dropout=False), qnets.weights, qnets.biases)
    assert torch.equal(off.score(vectors, training=True), off.score(vectors))


def test_score_computes_in_dtype_of_weights():
    qnets, vectors = random_qnets(QNetSpec((8, 8, 1))), random_vectors(5, 8)
    assert qnets.score(vectors.half()).dtype == torch.float32
    assert qnets.to(dtype=torch.float64).score(vectors).dtype == torch.float64
    assert qnets.to(dtype=torch.bfloat16).score(vectors).dtype == torch.bfloat16


def test_score_of_no_document_and_of_one_document():
    qnets = random_qnets(QNetSpec((8, 8, 1)))
    assert qnets.score(torch.empty(0, 8)).shape == (3, 0)
    assert qnets.score(torch.ones(1, 8)).shape == (3, 1)


@pytest.mark.parametrize("shape", [(5, 7), (8,), (2, 5, 8), (1, 3, 5, 8)])
def test_score_refuses_vectors_of_wrong_shape(shape):
    with pytest.raises(ValueError, match="Document vectors"):
        random_qnets(QNetSpec((8, 8, 1))).score(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector_dimensions": (8,)}, "at least two positive widths"),
        ({"vector_dimensions": (8, 8, 2)}, "the last one must be 1"),
        ({"vector_dimensions": (8, 0, 1)}, "positive widths"),
        ({"vector_dimensions": (8, 8, 1), "activation_type": "swish"}, "leaky_relu"),
        ({"vector_dimensions": (8, 8, 1), "do_residual": False, "do_residual_on_last": True}, "do_residual=True"),
        ({"vector_dimensions": (8, 6, 6, 1)}, "equal width"),
        ({}, "vector_dimensions"),
    ],
)
def test_spec_refuses_contradicting_options(options, message):
    with pytest.raises(ValueError, match=message):
        QNetSpec.from_config(options)


def test_from_config_uses_released_defaults_and_ignores_unknown_options():
    spec = QNetSpec.from_config({"vector_dimensions": [8, 8, 1], "something_new": 3})
    assert spec == QNetSpec((8, 8, 1), "relu", False, 0.1, True, True, False, True)
    assert QNetSpec.from_config({"vector_dimensions": [8, 1], "activation_type": "leakyrelu"}).activation_type == "leaky_relu"


@pytest.mark.parametrize(("layers", "size"), [(2, 1_181_952), (4, 2_363_136), (6, 3_544_320), (8, 4_725_504)])
def test_size_of_released_qnets(layers, size):
    assert QNetSpec((*[768] * (layers + 1), 1)).size == size


def test_cat_unflatten_and_constructor_refuse_wrong_shapes():
    with pytest.raises(ValueError, match="at least one QNets"):
        QNets.cat([])
    with pytest.raises(ValueError, match="requires one architecture"):
        QNets.cat([random_qnets(QNetSpec((8, 8, 1))), random_qnets(QNetSpec((8, 1)))])
    with pytest.raises(ValueError, match=r"\(Q, 80\)"):
        QNets.unflatten(torch.zeros(2, 81), QNetSpec((8, 8, 1)))
    with pytest.raises(ValueError, match="must have tensors of shapes"):
        QNets(QNetSpec((8, 8, 1)), [torch.zeros(2, 8, 8), torch.zeros(2, 8, 1)], [])
    with pytest.raises(ValueError, match=r"\(Q, D\)"):
        QNets.linear(torch.zeros(8))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("vector_dimensions", value) for value in ("81", 81, [8.0, 1], ["8", 1], iter([8, 1]), None, [[8, 1]], {})],
        *[("activation_type", value) for value in (None, 3, ["relu"])],
        *[(name, value) for name in ("dropout_prob", "skip_scale") for value in (float("nan"), float("inf"), "1", None, True)],
        *[("dropout_prob", value) for value in (-0.1, 1.1)],
        *[("do_residual", value) for value in (None, 1, "false")],
        ("do_residual_on_last", "false"),
    ],
    ids=lambda value: "iterator" if hasattr(value, "__next__") else str(value),
)
def test_options_of_wrong_types_raise_value_error(option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        QNetSpec.from_config({"vector_dimensions": [8, 8, 1], option: value})


def test_vector_dimensions_may_be_numpy_integers():
    spec = QNetSpec(np.array([8, 4, 1]), do_residual=False)
    assert spec == QNetSpec((8, 4, 1), do_residual=False) and all(type(d) is int for d in spec.vector_dimensions)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradients_for_documents_flow_through_qnets(spec):
    vectors = random_vectors(5, 8).requires_grad_()
    random_qnets(spec).score(vectors).sum().backward()
    assert vectors.grad.isfinite().all() and vectors.grad.abs().sum() > 0


def test_gradients_for_documents_flow_through_qnets_of_an_encoder(model, index):
    """The q-nets and vectors that leave the package can be used in any computation."""
    qnets = model.encode_queries(["a query", "another one"])
    vectors = torch.from_numpy(np.array(index.vectors[:10], dtype=np.float32)).requires_grad_()
    for nets in (qnets, qnets.select([1]), QNets.unflatten(qnets.flatten(), qnets.spec), qnets.narrow(4)):
        vectors.grad = None
        nets.score(vectors).sum().backward()
        assert vectors.grad.abs().sum() > 0


@pytest.mark.parametrize("spec", [s for s in SPECS if s.do_layer_norm and s.hidden_layers], ids=str)
def test_variance_that_overflows_gives_nan_and_not_zero(spec):
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    qnets.weights[0][1] *= 1e25
    scores = qnets.score(vectors)
    bounded = spec.activation_type in ("tanh", "sigmoid")
    assert scores[[0, 2]].isfinite().all() and bool(scores[1].isnan().all()) is not bounded


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_scale_of_weights_before_a_layer_norm_changes_nothing(spec):
    """Large values are no error unless they overflow."""
    if not spec.do_layer_norm or not spec.hidden_layers or spec.do_residual or spec.activation_type != "relu":
        return
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    expected = qnets.score(vectors)
    for tensor in (*qnets.weights[:-1], *qnets.biases):
        tensor *= 1e15
    torch.testing.assert_close(qnets.score(vectors), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("default", ["float16", "float64", "meta"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_global_defaults_of_torch_change_no_score(torch_default, default, spec):
    qnets, vectors = random_qnets(spec), random_vectors(5, 8)
    expected = qnets.score(vectors)
    with torch_default(default):
        found = QNets.cat([qnets.select([0]), QNets.unflatten(qnets.flatten(), spec).select([2])]).score(vectors)
    torch.testing.assert_close(found, expected[[0, 2]], rtol=1e-5, atol=1e-5)

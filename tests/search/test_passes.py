"""One pass over the collection: bounded blocks, and nothing that waits for a GPU inside the loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretend_cuda import pretend_cuda

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.search import passes
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.finite import NonFiniteScoreError

SPEC = QNetSpec((16, 8, 1), do_residual=False)
Q = 3
FILTERS = {
    "no filter": None,
    "shared": [np.arange(0, 3000, 2)] * Q,
    "different": [np.arange(0, 3000, 3), np.arange(5), np.empty(0, np.int64)],
    "one without": [np.arange(0, 3000, 3), None, np.arange(1000, 2000)],
}


def make_qnets() -> QNets:
    return QNets.unflatten(torch.randn(Q, SPEC.size, generator=torch.Generator().manual_seed(0)), SPEC)


@pytest.fixture
def small_blocks(monkeypatch):
    """Return a function that sets the number of documents of a block."""

    def set_size(n_docs: int) -> None:
        for name in ("_CHUNK_BYTES", "_STREAMED_BYTES"):
            monkeypatch.setattr(passes, name, 4 * 16 * n_docs)
        monkeypatch.setattr(passes, "_MOST_DOCS_ON_GPU", n_docs)

    return set_size


def search_on_gpu(vectors, *, resident: bool, rough: bool = False, **options):
    cuda, qnets = torch.device("cuda"), make_qnets()
    score = scoring.make_scorer(qnets, device="cuda")
    first_pass = scoring.make_scorer(qnets, device="cuda", precision="bf16") if rough else None
    rows = torch.from_numpy(vectors).to(cuda) if resident else vectors
    return exhaustive_search(score, rows, Q, 10, device=cuda, first_pass=first_pass, **options)


@pytest.mark.parametrize("allowed", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("rough", [True, False])
def test_gpu_returns_the_ranking_of_the_cpu(vectors, small_blocks, allowed, resident, rough):
    small_blocks(700)
    expected = exhaustive_search(scoring.make_scorer(make_qnets(), device="cpu"), vectors, Q, 10, allowed=allowed)
    with pretend_cuda():
        found = search_on_gpu(vectors, resident=resident, rough=rough, allowed=allowed)
    assert [row.tolist() for row in found.docids] == [row.tolist() for row in expected.docids]


@pytest.mark.parametrize("allowed", FILTERS.values(), ids=FILTERS)
def test_number_of_waits_for_the_gpu_does_not_depend_on_the_number_of_blocks(vectors, small_blocks, allowed):
    waits = []
    for n_docs in (3000, 500):
        small_blocks(n_docs)
        with pretend_cuda() as seen:
            search_on_gpu(vectors, resident=True, allowed=allowed)
            waits.append(seen.synchronisations)
    assert waits[0] == waits[1] <= 8 + (0 if allowed is None else 5 * Q)  # filters are moved to the GPU


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_damaged_vector_is_named_on_a_gpu(vectors, small_blocks, value):
    small_blocks(600)
    damaged = vectors.copy()
    damaged[1234, 3] = value
    with pretend_cuda(), pytest.raises(NonFiniteScoreError) as error:
        search_on_gpu(damaged, resident=True)
    assert error.value.docid == 1234 and not error.value.vector_is_finite


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "random"])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_best_documents_do_not_depend_on_the_order_of_scores(small_blocks, order, k):
    small_blocks(7)
    values = {"ascending": np.arange(200), "descending": -np.arange(200), "equal": np.zeros(200)}
    scores = values.get(order, np.random.default_rng(0).integers(0, 50, 200)).astype(np.float32)
    rows = np.repeat(scores[:, None], 16, axis=1)
    found = exhaustive_search(lambda block: block[:, 0].expand(2, -1).clone(), rows, 2, k)
    assert [row.tolist() for row in found.docids] == [np.argsort(-scores, kind="stable")[:k].tolist()] * 2


def test_scores_of_many_queries_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(passes, "_SCORES_PER_BLOCK", {"cpu": 1000, "gpu": 1000})
    sizes = []

    def score(block):
        sizes.append(len(block))
        return torch.zeros(50, len(block))

    exhaustive_search(score, np.zeros((101, 4), np.float32), 50, 5)
    assert sizes == [20] * 5 + [1]

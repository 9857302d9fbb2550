"""Tests of the example exactly_one_of_two: its labels, why inner products fail on it, and that a Hypencoder does not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

import exactly_one_of_two as example  # noqa: E402

ONE, BOTH, EXACTLY = example.KINDS
PAIRS = 28  # of eight properties


@pytest.fixture(scope="module", autouse=True)
def _single_thread():
    """Compute with one thread, as the example does, and restore the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world():
    return example.build_world()


def make_labels(world, kind: str) -> np.ndarray:
    """Return 1 for relevant documents and 0 for others, for the topics of a kind: (topics, documents)."""
    docs = world.train + world.held_out
    return np.array([[topic.is_relevant(doc.has) for doc in docs] for topic in world.select_topics(kind)], dtype=float)


# --- The world ---


def test_texts_name_present_and_absent_properties(world):
    for doc in world.train + world.held_out:
        words = doc.text.split()
        assert len(words) == len(example.PROPERTIES)
        assert [name in words for name in example.PROPERTIES] == [bool(there) for there in doc.has]
        assert [f"non-{name}" not in words for name in example.PROPERTIES] == [bool(there) for there in doc.has]


def test_held_out_documents_share_no_combination_with_training_documents(world):
    train, held_out = ({doc.has for doc in docs} for docs in (world.train, world.held_out))
    assert (len(train), len(held_out)) == (192, 64)
    assert not train & held_out
    assert len({doc.docno for doc in world.train + world.held_out}) == 256


def test_topics_cover_every_property_and_every_pair_twice(world):
    assert [len(world.select_topics(kind)) for kind in example.KINDS] == [8, PAIRS, PAIRS]
    assert len({topic.query for topic in world.topics}) == len({topic.qid for topic in world.topics}) == 8 + 2 * PAIRS
    assert {len(topic.properties) for topic in world.select_topics(ONE)} == {1}
    pairs, same_pairs = ({topic.properties for topic in world.select_topics(kind)} for kind in (BOTH, EXACTLY))
    assert pairs == same_pairs


@pytest.mark.parametrize(
    ("kind", "properties", "neither", "first", "second", "both"),
    [
        (ONE, (0,), False, True, False, True),
        (BOTH, (0, 1), False, False, False, True),
        (EXACTLY, (0, 1), False, True, True, False),
    ],
)
def test_is_relevant_for_each_kind_of_topic(kind, properties, neither, first, second, both):
    topic = example.Topic("q", kind, properties)
    rest = (1, 0, 1)
    found = [topic.is_relevant((*has, *rest)) for has in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert found == [neither, first, second, both]


def test_queries_name_kind_and_properties():
    queries = [example.Topic("q", kind, (0, 1)[: 1 + (kind != ONE)]).query for kind in example.KINDS]
    assert queries == ["red", "both red round", "either red round"]


def test_qrels_contain_held_out_documents_only(world):
    qrels = world.make_qrels()
    assert set(qrels["docno"]) <= {doc.docno for doc in world.held_out}
    assert set(qrels["qid"]) == {topic.qid for topic in world.topics}  # every topic has relevant documents
    topics = {topic.qid: topic for topic in world.topics}
    docs = {doc.docno: doc for doc in world.held_out}
    assert all(topics[row.qid].is_relevant(docs[row.docno].has) for row in qrels.itertuples())
    assert len(qrels) == sum(t.is_relevant(d.has) for t in world.topics for d in world.held_out)


def test_world_and_rows_depend_on_the_seed_only(world, tmp_path):
    assert example.build_world() == world != example.build_world(1)
    for name in ("a", "b"):
        example.write_rows(world, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_training_rows_contain_no_held_out_document(world, tmp_path):
    example.write_rows(world, tmp_path / "rows.jsonl")
    text = (tmp_path / "rows.jsonl").read_text()
    assert all(doc.text in text for doc in world.train)
    assert not any(doc.text in text for doc in world.held_out)


# --- Why inner products fail: the Radon argument ---


def test_additive_vectors_cannot_rank_exactly_one_of_two_first():
    """The means of (neither, both) and (first, second) are equal, so their mean scores are equal for every query."""
    rng = np.random.default_rng(0)
    for dimension in (1, 2, 16):
        base, a, b = rng.normal(size=(3, dimension))
        neither, first, second, both = base, base + a, base + b, base + a + b
        for query in rng.normal(size=(1000, dimension)):
            assert min(first @ query, second @ query) <= max(neither @ query, both @ query) + 1e-9
    # A third dimension that tells whether the two properties differ is enough.
    product = np.array([0.0, 0.0, 1.0])
    corners = {has: np.array([*has, has[0] != has[1]]) for has in ((0, 0), (1, 0), (0, 1), (1, 1))}
    assert min(corners[1, 0] @ product, corners[0, 1] @ product) > max(corners[0, 0] @ product, corners[1, 1] @ product)


@pytest.mark.parametrize("dimension", [1, 4, 12])
def test_some_subset_of_d_plus_2_vectors_cannot_be_ranked_first(dimension):
    """Radon: D + 2 vectors contain two disjoint sets with the same weighted mean."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(dimension + 2, dimension))
    # The weights sum to 0, and so do the weighted vectors.
    weights = np.linalg.svd(np.column_stack([vectors, np.ones(dimension + 2)]).T)[2][-1]
    relevant = weights > 0
    shares = np.abs(weights) / weights[relevant].sum()
    np.testing.assert_allclose(shares[relevant] @ vectors[relevant], shares[~relevant] @ vectors[~relevant], atol=1e-9)
    scores = rng.normal(size=(1000, dimension)) @ vectors.T
    assert (scores[:, relevant].min(1) <= scores[:, ~relevant].max(1) + 1e-9).all()


def test_one_dimension_per_pair_is_enough_for_inner_products(world):
    """The judgements have rank 28, and with 28 dimensions they can serve as the vectors themselves."""
    exactly = make_labels(world, EXACTLY)
    assert np.linalg.matrix_rank(exactly - exactly.mean(1, keepdims=True)) == PAIRS
    vectors, queries = exactly.T, np.eye(PAIRS)
    scores = queries @ vectors.T
    assert all(row[wanted > 0].min() > row[wanted == 0].max() for row, wanted in zip(scores, exactly, strict=True))


def test_fitted_inner_products_fail_with_12_dimensions_and_succeed_with_32(world):
    few, enough = (example.fit_inner_products(world, dimension) for dimension in (example.DIMENSION, 32))
    assert min(few[ONE], few[BOTH]) >= 0.99
    assert few[EXACTLY] <= 0.80
    assert min(enough.values()) >= 0.99


# --- The two models ---


def test_both_models_have_the_same_document_encoder():
    hypencoder, bi_encoder = (example.make_encoder(kind, 12, 20) for kind in example.MODELS)
    shapes = [{k: v.shape for k, v in m.passage_encoder.state_dict().items()} for m in (hypencoder, bi_encoder)]
    assert shapes[0] == shapes[1]


def test_main_prints_all_tables(capsys, monkeypatch):
    monkeypatch.setattr(example, "TRAINED_DIMENSIONS", (4,))
    monkeypatch.setattr(example, "SWEEP_STEPS", 2)
    monkeypatch.setattr(example, "FITTED_DIMENSIONS", (4,))
    monkeypatch.setattr(sys, "argv", ["exactly_one_of_two.py", "--steps", "3", "--sweep"])
    example.main()
    out = capsys.readouterr().out
    assert "192 training documents, 64 held-out documents" in out
    assert all(name in out for name in (*example.KINDS, *example.MODELS, "Bi-encoders by dimension"))


@pytest.mark.slow  # trains both models for all steps, one to two minutes
def test_hypencoder_ranks_exactly_one_of_two_and_bi_encoder_does_not(world, tmp_path):
    assert example.DIMENSION <= 16
    trained = {kind: example.train_model(kind, world, tmp_path / kind) for kind in example.MODELS}
    table = example.evaluate(trained, world, tmp_path)
    assert table.loc[EXACTLY, "Hypencoder"] >= 0.95
    assert table.loc[EXACTLY, "bi-encoder"] <= 0.80
    assert table.loc[[ONE, BOTH]].to_numpy().min() >= 0.95
    assert trained["Hypencoder"].vec_size == trained["bi-encoder"].vec_size == example.DIMENSION

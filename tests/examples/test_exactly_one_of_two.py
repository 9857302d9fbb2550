"""The exactly-one-of-two world: its labels, why inner products fail on it, and that a Hypencoder does not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("accelerate")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import exactly_one_of_two as exactly_one  # noqa: E402

ONE, BOTH, EXACTLY = exactly_one.KINDS
PAIRS = 28  # of eight properties


@pytest.fixture(scope="module")
def world():
    return exactly_one.build()


def labels(world, kind: str) -> np.ndarray:
    """Which documents, all of them, are relevant to the topics of a kind: (topics, documents)."""
    docs = world.train + world.held_out
    return np.array([[topic.is_relevant(doc.has) for doc in docs] for topic in world.of_kind(kind)], dtype=float)


# --- the world ---


def test_texts_say_what_documents_have(world):
    for doc in world.train + world.held_out:
        words = doc.text.split()
        assert len(words) == len(exactly_one.PROPERTIES)
        assert [name in words for name in exactly_one.PROPERTIES] == [bool(there) for there in doc.has]
        assert [f"non-{name}" not in words for name in exactly_one.PROPERTIES] == [bool(there) for there in doc.has]


def test_held_out_documents_have_combinations_of_their_own(world):
    train, held_out = ({doc.has for doc in docs} for docs in (world.train, world.held_out))
    assert (len(train), len(held_out)) == (192, 64)
    assert not train & held_out
    assert len({doc.docno for doc in world.train + world.held_out}) == 256


def test_every_pair_is_asked_for_in_both_ways(world):
    assert [len(world.of_kind(kind)) for kind in exactly_one.KINDS] == [8, PAIRS, PAIRS]
    assert len({topic.query for topic in world.topics}) == len({topic.qid for topic in world.topics}) == 8 + 2 * PAIRS
    assert {len(topic.properties) for topic in world.of_kind(ONE)} == {1}
    assert {topic.properties for topic in world.of_kind(BOTH)} == {topic.properties for topic in world.of_kind(EXACTLY)}


@pytest.mark.parametrize(
    ("kind", "properties", "neither", "first", "second", "both"),
    [
        (ONE, (0,), False, True, False, True),
        (BOTH, (0, 1), False, False, False, True),
        (EXACTLY, (0, 1), False, True, True, False),
    ],
)
def test_labels(kind, properties, neither, first, second, both):
    topic = exactly_one.Topic("q", kind, properties)
    rest = (1, 0, 1)
    found = [topic.is_relevant((*has, *rest)) for has in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert found == [neither, first, second, both]


def test_queries():
    queries = [exactly_one.Topic("q", kind, (0, 1)[: 1 + (kind != ONE)]).query for kind in exactly_one.KINDS]
    assert queries == ["red", "both red round", "either red round"]


def test_qrels_are_of_held_out_documents(world):
    qrels = world.qrels()
    assert set(qrels["docno"]) <= {doc.docno for doc in world.held_out}
    assert set(qrels["qid"]) == {topic.qid for topic in world.topics}  # no topic is without relevant documents
    topics = {topic.qid: topic for topic in world.topics}
    docs = {doc.docno: doc for doc in world.held_out}
    assert all(topics[row.qid].is_relevant(docs[row.docno].has) for row in qrels.itertuples())
    assert len(qrels) == sum(t.is_relevant(d.has) for t in world.topics for d in world.held_out)


def test_a_seed_gives_the_same_world_and_another_one_another(world, tmp_path):
    assert exactly_one.build() == world != exactly_one.build(1)
    for name in ("a", "b"):
        exactly_one.write_rows(world, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_training_rows_hold_no_held_out_document(world, tmp_path):
    exactly_one.write_rows(world, tmp_path / "rows.jsonl")
    text = (tmp_path / "rows.jsonl").read_text()
    assert all(doc.text in text for doc in world.train)
    assert not any(doc.text in text for doc in world.held_out)


# --- why inner products fail: Radon's argument ---


def test_no_direction_separates_the_corners_of_a_pair_in_a_code_that_adds_up():
    """The corners neither and both have the mean of the other two, so their scores have the same mean, whatever the query."""
    rng = np.random.default_rng(0)
    for dimension in (1, 2, 16):
        base, a, b = rng.normal(size=(3, dimension))
        neither, first, second, both = base, base + a, base + b, base + a + b
        for query in rng.normal(size=(1000, dimension)):
            assert min(first @ query, second @ query) <= max(neither @ query, both @ query) + 1e-9
    # One dimension that is the product of the two properties is enough to separate them.
    product = np.array([0.0, 0.0, 1.0])
    corners = {has: np.array([*has, has[0] != has[1]]) for has in ((0, 0), (1, 0), (0, 1), (1, 1))}
    assert min(corners[1, 0] @ product, corners[0, 1] @ product) > max(corners[0, 0] @ product, corners[1, 1] @ product)


@pytest.mark.parametrize("dimension", [1, 4, 12])
def test_any_few_more_documents_than_dimensions_have_a_set_that_no_query_ranks_first(dimension):
    """Radon: of D + 2 vectors, two disjoint sets have weighted means that are the same point."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(dimension + 2, dimension))
    weights = np.linalg.svd(np.column_stack([vectors, np.ones(dimension + 2)]).T)[2][-1]  # sums to 0, and so do the vectors
    relevant = weights > 0
    shares = np.abs(weights) / weights[relevant].sum()
    np.testing.assert_allclose(shares[relevant] @ vectors[relevant], shares[~relevant] @ vectors[~relevant], atol=1e-9)
    scores = rng.normal(size=(1000, dimension)) @ vectors.T
    assert (scores[:, relevant].min(1) <= scores[:, ~relevant].max(1) + 1e-9).all()


def test_a_dimension_for_every_pair_holds_every_pair(world):
    """The judgements span as many dimensions as there are pairs, and in these dimensions they are the vectors themselves."""
    exactly = labels(world, EXACTLY)
    assert np.linalg.matrix_rank(exactly - exactly.mean(1, keepdims=True)) == PAIRS
    vectors, queries = exactly.T, np.eye(PAIRS)
    scores = queries @ vectors.T
    assert all(row[wanted > 0].min() > row[wanted == 0].max() for row, wanted in zip(scores, exactly, strict=True))


def test_the_sweep_shows_the_dimension_that_is_missing(world):
    few, enough = (exactly_one.fit_inner_products(world, dimension) for dimension in (exactly_one.DIMENSION, 32))
    assert min(few[ONE], few[BOTH]) >= 0.99
    assert few[EXACTLY] <= 0.80
    assert min(enough.values()) >= 0.99


# --- the two models ---


def test_both_models_have_the_same_document_encoder():
    hypencoder, bi_encoder = (exactly_one.make_encoder(kind, 12, 20) for kind in exactly_one.MODELS)
    shapes = [{k: v.shape for k, v in m.passage_encoder.state_dict().items()} for m in (hypencoder, bi_encoder)]
    assert shapes[0] == shapes[1]


def test_it_runs_to_its_tables(capsys, monkeypatch):
    monkeypatch.setattr(exactly_one, "TRAINED_SWEEP", (4,))
    monkeypatch.setattr(exactly_one, "TRAINED_SWEEP_STEPS", 2)
    monkeypatch.setattr(exactly_one, "SWEEP", (4, 8))
    monkeypatch.setattr(sys, "argv", ["exactly_one_of_two.py", "--steps", "3", "--sweep"])
    exactly_one.main()
    out = capsys.readouterr().out
    assert "192 documents to train on, 64 held out" in out
    assert all(name in out for name in (*exactly_one.KINDS, *exactly_one.MODELS, "Bi-encoders by dimension"))


def test_a_hypencoder_ranks_what_a_bi_encoder_cannot(world, tmp_path):
    """Slow: the full figures, both models trained for all their steps, which takes one to two minutes."""
    assert exactly_one.DIMENSION <= 16
    trained = {kind: exactly_one.train(kind, world, tmp_path / kind) for kind in exactly_one.MODELS}
    table = exactly_one.judge(trained, world, tmp_path)
    assert table.loc[EXACTLY, "Hypencoder"] >= 0.95
    assert table.loc[EXACTLY, "bi-encoder"] <= 0.80
    assert table.loc[[ONE, BOTH]].to_numpy().min() >= 0.95
    assert trained["Hypencoder"].vec_size == trained["bi-encoder"].vec_size == exactly_one.DIMENSION

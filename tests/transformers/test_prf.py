"""Feedback on query vectors: the formula, models with and without a query vector, and pyterrier_dr's PRF and MMR."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from result_checks import list_runs

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer, QNets, QNetSpec
from pyterrier_hypencoder.transformers.prf import VectorFeedback, read_query_vectors, replace_query_vectors

N, D = 50, 6
TOPICS = pd.DataFrame(
    {"qid": ["b", "a"], "query_vec": list(np.random.default_rng(1).standard_normal((2, D), dtype=np.float32))}
)

TestVectorFeedback = pt.testing.transformer_test_class(VectorFeedback.example)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> HypencoderIndex:
    """Return an index of 50 random vectors in float32, without a model."""
    vectors = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    docs = ({"docno": f"v{i}", "doc_vec": vector} for i, vector in enumerate(vectors))
    return HypencoderIndexer(tmp_path_factory.mktemp("plain") / "x.hyp", dtype="fp32").index(docs)


@pytest.fixture(scope="module")
def run(plain) -> pd.DataFrame:
    return plain.retriever(num_results=8)(TOPICS)


@pytest.mark.parametrize(("k", "alpha", "beta"), [(1, 1.0, 0.2), (3, 0.5, 2), (100, 0, 1.0)])
def test_query_vector_moves_towards_the_best_documents(plain, run, k, alpha, beta):
    moved = plain.prf(k=k, alpha=alpha, beta=beta)(run.sample(frac=1, random_state=0).sort_values("qid", ascending=False))
    assert list(moved.columns) == ["qid", "query_vec"] and moved["qid"].tolist() == ["b", "a"]
    for query, new in zip(TOPICS["query_vec"], moved["query_vec"], strict=True):
        best = np.argsort(-(plain.vectors @ query))[: min(k, 8)]
        np.testing.assert_allclose(new, alpha * query + beta * plain.vectors[best].mean(axis=0), rtol=1e-5, atol=1e-5)


def test_feedback_between_two_searches_keeps_query_columns_and_the_input(plain, run):
    inp = run.assign(query="words", qlang="en")
    before = inp.copy(deep=True)
    moved = plain.prf()(inp)
    pd.testing.assert_frame_equal(inp, before)
    assert (moved[["query", "qlang"]] == ["words", "en"]).all().all()
    pipeline = plain.retriever(num_results=8) >> plain.prf(beta=0) >> plain.retriever(num_results=8)
    assert list_runs(pipeline(TOPICS)) == list_runs(run)
    assert list_runs(pipeline.compile()(TOPICS)) == list_runs(run)


def test_empty_results_give_no_queries(plain, run):
    assert list(plain.prf()(run.head(0)).columns) == ["qid", "query_vec"] and not len(plain.prf()(run.head(0)))


def test_unknown_documents_and_options_that_are_not_valid_are_refused(plain, run):
    with pytest.raises(ValueError, match="unknown docnos: nowhere"):
        plain.prf()(run.assign(docno="nowhere"))
    for option, value in {"k": 0, "alpha": "1", "beta": float("nan")}.items():
        with pytest.raises(ValueError, match=f"{option} must be a"):
            plain.prf(**{option: value})(run.head(0))


def test_networks_without_a_query_vector_are_refused_and_the_error_shows_a_way(index, model, full):
    with pytest.raises(ValueError, match=r"q-nets with a query vector, got networks \(24, .*Expand the text of the query"):
        index.prf(model)(full)


def test_networks_with_an_inner_product_skip_move_its_vector_only():
    spec = QNetSpec((D, 3, 1), do_residual=False, inner_product_skip=True)
    parts = [torch.randn(2, i, o) for i, o in spec.weight_shapes], [torch.randn(2, n) for n in spec.bias_sizes]
    qnets, vectors = QNets(spec, *parts, torch.randn(2, D)), torch.randn(2, D)
    moved = replace_query_vectors(qnets, vectors)
    docs = torch.randn(9, D)
    torch.testing.assert_close(read_query_vectors(moved), vectors)
    torch.testing.assert_close(moved.score(docs) - qnets.score(docs), (vectors - qnets.query_vectors) @ docs.T)


# pyterrier_dr


@pytest.fixture
def dr():
    return pytest.importorskip("pyterrier_dr")


def test_vector_prf_of_pyterrier_dr_gives_the_same_query_vectors(dr, plain, run):
    frame = plain.vec_loader()(run)
    for theirs, ours in [
        (dr.VectorPrf(k=3, alpha=0.8, beta=0.3), plain.prf(k=3, alpha=0.8, beta=0.3)),
        (dr.AveragePrf(k=3), plain.prf(k=3, alpha=1 / 4, beta=3 / 4)),
    ]:
        found, expected = (part.set_index("qid")["query_vec"].sort_index() for part in (theirs(frame), ours(run)))
        np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=1e-4, atol=1e-5)
        pipeline = plain.retriever(num_results=8) >> plain.vec_loader() >> theirs >> plain.retriever(num_results=8)
        assert pipeline(TOPICS).groupby("qid").size().tolist() == [8, 8]


def test_mmr_of_pyterrier_dr_reorders_results_of_query_vectors_and_of_networks(dr, plain, run, index, model, topics):
    networks = index.retriever(model, num_results=8)
    for results, pipeline in [
        (run, plain.retriever(num_results=8) >> plain.vec_loader() >> dr.MmrScorer(Lambda=0.1)),
        (networks(topics), networks >> index.vec_loader() >> dr.MmrScorer(Lambda=0.1, norm_rel=True)),
    ]:
        found = pipeline(topics if "query" in results else TOPICS)
        assert {qid: set(docs) for qid, docs in list_runs(found).items()} == {
            qid: set(docs) for qid, docs in list_runs(results).items()
        }
        assert list_runs(found) != list_runs(results)

"""GAR and LADR over our graph: what they score, odd sizes, empty first stages, unknown documents, and missing packages."""

from __future__ import annotations

import importlib.util
import inspect
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import nDCG
from result_checks import assert_sorted, count_calls, score_by_document

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer, HypencoderScorer
from pyterrier_hypencoder.transformers.adaptive import Gar, LadrAdaptive, LadrProactive

pytest.importorskip("pyterrier_adaptive")
pytest.importorskip("pyterrier_dr")

NAMES = ("gar", "ladr_proactive", "ladr_adaptive")
COLUMNS = ["qid", "query", "docno", "docid", "score", "rank"]

TestGar = pt.testing.transformer_test_class(Gar.example)
TestLadrProactive = pt.testing.transformer_test_class(LadrProactive.example)
TestLadrAdaptive = pt.testing.transformer_test_class(LadrAdaptive.example)


@pytest.fixture(scope="module")
def run(bm25, topics):
    """Return the first five documents of each query."""
    return (bm25 % 5)(topics)


@pytest.fixture(params=NAMES)
def make(request, index_with_graph, model):
    """Return a function that makes each adaptive re-ranker over the graph with 10 neighbours."""
    return lambda **options: getattr(index_with_graph, request.param)(index_with_graph.scorer(model), **options)


def assert_true_scores(found: pd.DataFrame, full: pd.DataFrame) -> None:
    wanted = score_by_document(full).loc[score_by_document(found).index]
    np.testing.assert_allclose(score_by_document(found), wanted, rtol=0, atol=1e-3 * full["score"].abs().max())


def test_results_are_ranked_true_scores_of_more_documents_than_the_first_stage(make, run, full):
    found = make(num_results=20)(run)
    assert list(found.columns) == COLUMNS and found["qid"].unique().tolist() == run["qid"].unique().tolist()
    assert_sorted(found)
    assert_true_scores(found, full)
    assert (found.groupby("qid").size() == 20).all()


def test_proactive_ladr_scores_the_first_stage_and_its_neighbours(index_with_graph, model, run):
    graph = index_with_graph.corpus_graph(3)
    found = index_with_graph.ladr_proactive(model, k=3)(run)
    for qid, rows in run.groupby("qid"):
        docids = index_with_graph.docnos.find(rows["docno"])
        assert set(found.loc[found["qid"] == qid, "docid"]) == {*docids, *np.ravel(graph.edges_data[docids])}


@pytest.mark.parametrize("name", ["ladr_proactive", "ladr_adaptive"])
def test_budget_limits_the_documents_that_ladr_scores(index_with_graph, model, run, name, monkeypatch):
    scored = []
    score = HypencoderScorer.score
    monkeypatch.setattr(
        HypencoderScorer, "score", lambda self, queries, docids: scored.append(len(docids)) or score(self, queries, docids)
    )
    getattr(index_with_graph, name)(model, budget=8)(run.head(5))
    assert sum(scored) == 8


def test_gar_encodes_each_query_once_and_backfills(index_with_graph, model, bm25, topics, full, monkeypatch):
    first = bm25(topics.head(2))
    encoded = count_calls(monkeypatch, Hypencoder, "encode_queries")
    found = index_with_graph.gar(model, num_results=12, batch_size=4)(first)
    assert len(encoded) == 1 and len(found) == 24
    assert_true_scores(found, full)
    rest = index_with_graph.gar(model, num_results=100, batch_size=50)(first)
    assert {*zip(first["qid"], first["docno"], strict=True)} <= {*zip(rest["qid"], rest["docno"], strict=True)}


@pytest.mark.parametrize("n_docs", [1, 2, 7])
@pytest.mark.parametrize("name", NAMES)
def test_small_collections_and_odd_sizes(tmp_path, name, n_docs):
    vectors = np.random.default_rng(n_docs).standard_normal((n_docs, 5)).astype(np.float32)
    index = HypencoderIndexer(tmp_path / "x.hyp").index({"docno": f"v{i}", "doc_vec": v} for i, v in enumerate(vectors))
    index.corpus_graph(3)
    topics = pd.DataFrame({"qid": [2, 1], "query_vec": [[1.0] * 5, np.ones(5)]})
    run = topics.assign(docno=f"v{n_docs - 1}", score=1.0, rank=0)
    for num_results in (1, 3, 1000):
        found = getattr(index, name)(num_results=num_results)(run)
        assert found["qid"].unique().tolist() == [2, 1] and found["docno"].notna().all()
        assert (found.groupby("qid").size() <= min(num_results, n_docs)).all()
        assert_sorted(found)


def test_empty_first_stage_gives_an_empty_frame(make, run):
    found = make()(run.head(0))
    assert list(found.columns) == COLUMNS and not len(found)


def test_query_without_documents_has_no_results(make, run):
    some = run[run["qid"] != run["qid"].iloc[0]]
    found = make(num_results=10)(some)
    assert set(found["qid"]) == set(some["qid"])


def test_unknown_documents_are_named(make, run):
    with pytest.raises(ValueError, match="unknown docnos: nowhere"):
        make()(pd.concat([run, run.head(1).assign(docno="nowhere")]))


def test_input_is_not_changed_and_query_columns_are_kept(make, run):
    inp = run.assign(qlang="en", text="a text").sample(frac=1, random_state=0)
    before = inp.copy(deep=True)
    found = make(num_results=5)(inp)
    pd.testing.assert_frame_equal(inp, before)
    assert (found["qlang"] == "en").all() and "text" not in found.columns
    assert "query_vec" not in found.columns


@pytest.mark.parametrize("name", NAMES)
def test_query_vectors_and_recorded_model_give_the_same_results(index_with_graph, model, run, name):
    reranker = getattr(index_with_graph, name)(num_results=10)
    encoded = model.query_encoder()(run)
    pd.testing.assert_frame_equal(
        reranker(encoded).drop(columns="query_vec"), reranker(run), check_exact=False, rtol=1e-4, atol=2e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_missing_graph_names_the_call_that_builds_it(index, model, run, name):
    with pytest.raises(FileNotFoundError, match=r"index.corpus_graph\(16\)"):
        getattr(index, name)(model)(run)
    assert not list(index.path.glob("corpusgraph*"))


def test_larger_k_than_the_graph_has_is_refused(make, run):
    with pytest.raises(FileNotFoundError, match="at least 11 neighbours, got only graphs with 10"):
        make(k=11)(run)


@pytest.mark.parametrize("name", NAMES)
def test_scorers_of_other_indexes_and_models_that_do_not_fit_are_refused(
    index_with_graph, index, model, other_model, run, name
):
    factory = getattr(index_with_graph, name)
    for scorer in (index.scorer(model), model.text_scorer() if name != "gar" else HypencoderScorer(None, model)):
        with pytest.raises(ValueError, match=r"Pass index.scorer\(model\)"):
            factory(scorer)(run)
    with pytest.raises(ValueError, match="does not fit the index"):
        factory(other_model)(run)
    with pytest.raises(ValueError, match="scorer must be"):
        factory("model")(run)


def test_gar_accepts_any_reranker(index_with_graph, run):
    by_docno = pt.apply.doc_score(lambda row: float(int(row["docno"][1:])))
    found = index_with_graph.gar(by_docno, num_results=12, batch_size=3)(run)
    assert (found["score"] == found["docno"].str[1:].astype(float)).all() and len(found) == 12 * run["qid"].nunique()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "num_results", 0) for name in NAMES),
        *((name, "k", 0) for name in NAMES),
        ("gar", "batch_size", 1.5),
        ("ladr_proactive", "hops", 0),
        ("ladr_proactive", "budget", -1),
        ("ladr_adaptive", "depth", 0),
        ("ladr_adaptive", "max_hops", -1),
        ("ladr_adaptive", "budget", "all"),
    ],
)
def test_options_that_are_not_valid_are_refused_before_any_search(index_with_graph, model, run, name, option, value):
    with pytest.raises(ValueError, match=f"{option} must be a"):
        getattr(index_with_graph, name)(model, **{option: value})(run.head(0))


@pytest.mark.parametrize(("name", "package"), list(zip(NAMES, ("adaptive", "dr", "dr"), strict=True)))
def test_missing_package_names_its_pip_command(index_with_graph, model, run, name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"requires pyterrier_{package}: pip install pyterrier-{package}"):
        getattr(index_with_graph, name)(model)(run)


def test_rerankers_compare_pickle_and_show_their_options(make, index_with_graph):
    reranker = make(num_results=7)
    again = pickle.loads(pickle.dumps(reranker))
    assert again == reranker and hash(again) == hash(reranker) and again != make(num_results=8)
    assert "num_results=7" in repr(reranker)


@pytest.mark.parametrize(("name", "kind"), list(zip(NAMES, (Gar, LadrProactive, LadrAdaptive), strict=True)))
def test_factories_show_the_options_of_the_class(name, kind):
    found, expected = (list(inspect.signature(f).parameters) for f in (getattr(HypencoderIndex, name), kind))
    assert found == ["self", *expected[1:]]


def test_rank_cutoff_is_fused_only_if_it_changes_no_scores(index_with_graph, model, run):
    ladr = index_with_graph.ladr_adaptive(model)
    assert ladr.fuse_rank_cutoff(5) == index_with_graph.ladr_adaptive(model, num_results=5)
    pd.testing.assert_frame_equal((ladr % 5).compile()(run), (ladr % 5)(run))
    assert index_with_graph.ladr_adaptive(model, budget=True).fuse_rank_cutoff(5) is None


def test_adaptive_rerankers_in_an_experiment(index_with_graph, model, bm25, topics, qrels):
    scorer = index_with_graph.scorer(model)
    systems = {"re-rank": bm25 % 5 >> scorer}
    systems |= {name: bm25 % 5 >> getattr(index_with_graph, name)(scorer, num_results=20) for name in NAMES}
    table = pt.Experiment(systems, topics, qrels, [nDCG @ 20])
    assert table["nDCG@20"].between(0, 1).all() and (table["nDCG@20"].iloc[1:] >= table["nDCG@20"].iloc[0] - 1e-6).all()
    assert "GAR" in pt.schematic.draw(systems["gar"])

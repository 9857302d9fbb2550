"""Validation and the estimator: what they measure, what they learn from, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from pyterrier_hypencoder import BiEncoder, HypencoderIndexer, HypencoderTrainer
from pyterrier_hypencoder.encoders.loading import load_encoder  # noqa: E402
from pyterrier_hypencoder.training import validation
from pyterrier_hypencoder.training.estimator import HypencoderEstimator  # noqa: E402
from pyterrier_hypencoder.training.validation import Validation  # noqa: E402


@pytest.fixture(scope="module")
def qrels(docs, topics) -> pd.DataFrame:
    """Three judged documents a topic, one of them not relevant."""
    rows = [(qid, docs[5 * i + k]["docno"], 2 - k) for i, qid in enumerate(topics["qid"]) for k in range(3)]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


@pytest.fixture(scope="module")
def candidates(docs, topics) -> pd.DataFrame:
    """Ten documents a topic with their texts, judged ones among them."""
    rows = [
        {"qid": topic.qid, "query": topic.query, **docs[5 * i + k], "score": -float(k), "rank": k}
        for i, topic in enumerate(topics.itertuples())
        for k in range(10)
    ]
    return pd.DataFrame(rows)


def expected(run: pd.DataFrame, qrels: pd.DataFrame, measure: str) -> float:
    return pt.Evaluate(run, qrels, metrics=[ir_measures.parse_measure(measure)])[measure]


def test_a_collection_is_indexed_and_searched(model, docs, topics, qrels, index):
    run = index.retriever(model, num_results=50)(topics)
    for given in (docs, iter(docs), pd.DataFrame(docs)):
        measure = Validation(topics, qrels, given, measures=["Rprec", "nDCG@10"], num_results=50)
        for _ in range(2):  # the documents are read again
            found = measure(model)
        assert found == pytest.approx({name: expected(run, qrels, name) for name in ("Rprec", "nDCG@10")}, abs=1e-3)
    assert Validation(topics, qrels, index, num_results=50)(model) == {"Rprec": pytest.approx(expected(run, qrels, "Rprec"))}


def test_judged_documents_alone(model, docs, topics, qrels, index):
    judged = set(qrels["docno"])
    assert len(judged) < len(docs)
    run = index.retriever(model, num_results=50, allowed_docnos=judged)(topics)
    for given in (docs, index):
        found = Validation(topics, qrels, given, measures=["AP"], judged_only=True)(model)
        assert found["AP"] == pytest.approx(expected(run, qrels, "AP"), abs=1e-3)
    assert found["AP"] > Validation(topics, qrels, index, measures=["AP"])(model)["AP"]


def test_judged_documents_of_a_dataset_are_read_once(model, docs, topics, qrels):
    class Dataset:
        read = 0

        def get_corpus_iter(self, verbose=True):
            self.read += 1
            return iter(docs)

    dataset = Dataset()
    measure = Validation(topics, qrels, dataset, judged_only=True)
    assert measure(model) == measure(model)
    assert dataset.read == 1 and {doc["docno"] for doc in measure.docs} == set(qrels["docno"])


def test_candidates_are_re_ranked(model, candidates, qrels):
    run = model.text_scorer()(candidates)
    found = Validation(candidates, qrels, measures=["nDCG@10"])(model)
    assert found["nDCG@10"] == pytest.approx(expected(run, qrels, "nDCG@10"))


def test_a_directory_is_a_model_with_options(golden, minilm, topics, qrels, docs):
    for folder, options in ((golden / "tiny_6l_cls_shared", {}), (minilm.name_or_path, {"pooling": "cls"})):
        options |= {"device": "cpu", "doc_max_length": 8}
        assert 0 <= Validation(topics, qrels, docs, options=options)(folder)["Rprec"] <= 1


def test_validation_refuses_what_cannot_be_measured(topics, qrels, docs):
    with pytest.raises(ValueError, match="Check that the qids of both match"):
        Validation(topics, qrels.assign(qid="none"), docs)
    with pytest.raises(ValueError, match="Validation needs docs, or topics with candidates"):
        Validation(topics, qrels)


def trainer_of(model, out: Path, **options) -> HypencoderTrainer:
    arguments = {"use_cpu": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    defaults = {"losses": ["listwise_ce"], "batch_size": 4, "max_steps": 4, "learning_rate": 1e-3}
    return HypencoderTrainer(model, out, arguments=arguments, **(defaults | options))


def test_the_estimator_learns_from_the_candidates_of_a_pipeline(model, topics, qrels, candidates, tmp_path):
    first_stage = pt.Transformer.from_df(candidates)
    estimator = HypencoderEstimator(trainer_of(model, tmp_path / "out"), negatives_per_row=3)
    with pytest.raises(RuntimeError, match="is not trained yet"):
        estimator.transform(candidates)
    pipeline = first_stage >> estimator
    pipeline.fit(topics, qrels, topics, qrels)
    result = pipeline(topics)
    assert len(result) == len(candidates)
    assert not result["score"].equals(model.text_scorer()(candidates)["score"])
    pd.testing.assert_frame_equal(result, estimator.model.text_scorer()(candidates))
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["eval_nDCG@10"] for entry in state["log_history"] if "eval_nDCG@10" in entry]


def test_other_candidates_are_other_rows(model, topics, qrels, candidates, tmp_path):
    for first in (candidates, candidates[candidates["rank"] < 6]):
        HypencoderEstimator(trainer_of(model, tmp_path / "out"), negatives_per_row=3, resume=True).fit(first, qrels)
    assert len(list((tmp_path / "out").glob("rows-*.jsonl.gz"))) == 2


def test_the_estimator_measures_and_gives_back_what_it_was_given(minilm, topics, qrels, candidates, tmp_path, monkeypatch):
    given = BiEncoder(
        minilm.name_or_path,
        **{"query_prefix": "query: ", "doc_prefix": "passage: ", "doc_max_length": 16, "device": "cpu", "normalize": False},
    )
    loaded = []
    monkeypatch.setattr(validation, "load_encoder", lambda *a, **k: loaded.append(load_encoder(*a, **k)) or loaded[-1])
    estimator = HypencoderEstimator(trainer_of(given, tmp_path / "out"), negatives_per_row=3)
    estimator.fit(candidates, qrels, candidates, qrels)
    for model in (estimator.model, loaded[0]):
        assert (model.query_prefix, model.doc_prefix, model.doc_max_length) == ("query: ", "passage: ", 16)
        assert np.linalg.norm(model.encode_docs(["a planet"])) > 1.01


def test_the_estimator_alone_mines_its_negatives(model, topics, qrels, docs, index, tmp_path):
    options = {"docs": docs, "retriever": index.retriever(model, num_results=20), "measures": ["Rprec"]}
    estimator = HypencoderEstimator(
        trainer_of(model, tmp_path / "out"), negatives_per_row=3, teacher=model.text_scorer(), **options
    )
    assert estimator.fit(topics, qrels, topics, qrels) is estimator
    trained = HypencoderIndexer(tmp_path / "trained.hyp", estimator.model).index(docs)
    assert len(trained.retriever(estimator.model, num_results=3)(topics)) == 3 * len(topics)
    with pytest.raises(ValueError, match="needs candidates"):
        HypencoderEstimator(trainer_of(model, tmp_path / "other")).fit(topics, qrels)

"""HypencoderEstimator: it learns from candidates or from a retriever, and re-ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_hypencoder import BiEncoder, HypencoderEstimator, HypencoderIndexer, HypencoderTrainer
from pyterrier_hypencoder.encoders.loading import load_encoder
from pyterrier_hypencoder.training import validation


def make_trainer(model, output_dir: Path) -> HypencoderTrainer:
    """Return a trainer of four steps that validates every two."""
    arguments = {"use_cpu": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    options = {"losses": ["listwise_ce"], "batch_size": 4, "max_steps": 4, "learning_rate": 1e-3}
    return HypencoderTrainer(model, output_dir, arguments=arguments, **options)


def test_estimator_learns_from_candidates_of_a_pipeline(model, topics, qrels, candidates, tmp_path):
    first_stage = pt.Transformer.from_df(candidates)
    estimator = HypencoderEstimator(make_trainer(model, tmp_path / "out"), negatives_per_row=3)
    with pytest.raises(ValueError, match="is not trained yet"):
        estimator.transform(candidates)
    pipeline = first_stage >> estimator
    pipeline.fit(topics, qrels, topics, qrels)
    result = pipeline(topics)
    assert len(result) == len(candidates)
    assert not result["score"].equals(model.text_scorer()(candidates)["score"])
    pd.testing.assert_frame_equal(result, estimator.model.text_scorer()(candidates))
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["eval_nDCG@10"] for entry in state["log_history"] if "eval_nDCG@10" in entry]


def test_other_candidates_give_another_row_file(model, topics, qrels, candidates, tmp_path):
    for first in (candidates, candidates[candidates["rank"] < 6]):
        HypencoderEstimator(make_trainer(model, tmp_path / "out"), negatives_per_row=3, resume=True).fit(first, qrels)
    assert len(list((tmp_path / "out").glob("rows-*.jsonl.gz"))) == 2


def test_estimator_keeps_the_options_of_its_model(dense_dir, topics, qrels, candidates, tmp_path, monkeypatch):
    given = BiEncoder(
        dense_dir,
        **{"query_prefix": "query: ", "doc_prefix": "passage: ", "doc_max_length": 16, "device": "cpu", "normalize": False},
    )
    loaded = []
    monkeypatch.setattr(validation, "load_encoder", lambda *a, **k: loaded.append(load_encoder(*a, **k)) or loaded[-1])
    estimator = HypencoderEstimator(make_trainer(given, tmp_path / "out"), negatives_per_row=3)
    estimator.fit(candidates, qrels, candidates, qrels)
    for model in (estimator.model, loaded[0]):
        assert (model.query_prefix, model.doc_prefix, model.doc_max_length) == ("query: ", "passage: ", 16)
        assert np.linalg.norm(model.encode_docs(["a planet"])) > 1.01


def test_estimator_with_docs_and_retriever_mines_negatives(model, topics, qrels, docs, index, tmp_path):
    options = {"docs": iter(docs), "retriever": index.retriever(model, num_results=20), "measures": ["Rprec"]}
    estimator = HypencoderEstimator(
        make_trainer(model, tmp_path / "out"), negatives_per_row=3, teacher=model.text_scorer(), **options
    )
    assert estimator.fit(topics, qrels, topics, qrels) is estimator
    trained = HypencoderIndexer(tmp_path / "trained.hyp", estimator.model).index(docs)
    assert len(trained.retriever(estimator.model, num_results=3)(topics)) == 3 * len(topics)
    with pytest.raises(ValueError, match="needs candidates"):
        HypencoderEstimator(make_trainer(model, tmp_path / "other")).fit(topics, qrels)


def test_estimator_and_trainer_have_a_short_representation(model, tmp_path):
    estimator = HypencoderEstimator(make_trainer(model, tmp_path / "out"))
    assert "HypencoderTrainer(Hypencoder(" in repr(estimator) and "'out', train='all', max_steps=4)" in repr(estimator)
    assert len(repr(estimator)) < 200 and "\n" not in repr(estimator)


@pytest.mark.parametrize("docs", ["docs.jsonl", lambda: iter([])], ids=["path", "function"])
def test_estimator_refuses_docs_that_are_no_documents_before_training(model, tmp_path, docs):
    with pytest.raises(TypeError, match="docs must be documents or a dataset, got"):
        HypencoderEstimator(make_trainer(model, tmp_path / "out"), docs=docs)


def test_untrained_estimator_can_be_inspected(model, tmp_path):
    estimator = HypencoderEstimator(make_trainer(model, tmp_path / "out"), text_field=["title", "text"])
    columns = ["qid", "docno", "query", "title", "text"]
    assert pt.inspect.transformer_inputs(estimator) == [columns]
    assert pt.inspect.transformer_outputs(estimator, columns) == [*columns, "score", "rank"]
    assert pt.inspect.subtransformers(estimator) == {} and "Estimator" in pt.schematic.draw(estimator)


def test_too_few_negatives_name_the_option_of_the_estimator(model, topics, qrels, candidates, tmp_path):
    with pytest.raises(ValueError, match="fewer than 8 negatives: they have at most 7. Set negatives_per_row=7"):
        few = candidates[candidates["rank"] < 9]
        HypencoderEstimator(make_trainer(model, tmp_path / "out")).fit(few, qrels)

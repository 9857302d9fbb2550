"""Validation: it indexes and searches collections, or re-ranks candidates."""

from __future__ import annotations

import ir_measures
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_hypencoder import BiEncoder, HypencoderIndexer
from pyterrier_hypencoder.training.validation import Validation


def measure_run(run: pd.DataFrame, qrels: pd.DataFrame, measure: str) -> float:
    return pt.Evaluate(run, qrels, metrics=[ir_measures.parse_measure(measure)])[measure]


def test_collection_is_indexed_and_searched(model, docs, topics, qrels, index):
    run = index.retriever(model, num_results=50)(topics)
    for given in (docs, iter(docs), pd.DataFrame(docs)):
        validation = Validation(topics, qrels, given, measures=["Rprec", "nDCG@10"], num_results=50)
        for _ in range(2):  # an iterator must serve every validation
            found = validation(model)
        assert found == pytest.approx({name: measure_run(run, qrels, name) for name in ("Rprec", "nDCG@10")}, abs=1e-3)
    assert Validation(topics, qrels, index, num_results=50)(model) == {
        "Rprec": pytest.approx(measure_run(run, qrels, "Rprec"))
    }


def test_judged_only_leaves_out_other_documents(model, docs, topics, qrels, index):
    judged = set(qrels["docno"])
    assert len(judged) < len(docs)
    run = index.retriever(model, num_results=50, allowed_docnos=judged)(topics)
    for given in (docs, index):
        found = Validation(topics, qrels, given, measures=["AP"], judged_only=True)(model)
        assert found["AP"] == pytest.approx(measure_run(run, qrels, "AP"), abs=1e-3)
    assert found["AP"] > Validation(topics, qrels, index, measures=["AP"])(model)["AP"]


def test_judged_only_reads_a_dataset_once(model, docs, topics, qrels):
    class Dataset:
        read = 0

        def get_corpus_iter(self, verbose=True):
            self.read += 1
            return iter(docs)

    dataset = Dataset()
    validation = Validation(topics, qrels, dataset, judged_only=True)
    assert validation(model) == validation(model)
    assert dataset.read == 1 and {doc["docno"] for doc in validation.docs} == set(qrels["docno"])


def test_candidates_are_reranked(model, candidates, qrels):
    run = model.text_scorer()(candidates)
    found = Validation(candidates, qrels, measures=["nDCG@10"])(model)
    assert found["nDCG@10"] == pytest.approx(measure_run(run, qrels, "nDCG@10"))


def test_checkpoint_directory_is_loaded_with_options(golden, dense_dir, topics, qrels, docs):
    for folder, options in ((golden / "tiny_6l_cls_shared", {}), (dense_dir, {"pooling": "cls"})):
        options |= {"device": "cpu", "doc_max_length": 8}
        assert 0 <= Validation(topics, qrels, docs, options=options)(folder)["Rprec"] <= 1


def test_missing_judgements_and_documents_raise(topics, qrels, docs):
    with pytest.raises(ValueError, match="Check that the qids of both match"):
        Validation(topics, qrels.assign(qid="none"), docs)
    with pytest.raises(ValueError, match="Validation needs docs, or topics with candidates"):
        Validation(topics, qrels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": "nDCG@10"}, "measures must be a list of measures, got 'nDCG@10'. Put it in a list"),
        ({"measures": ["nonsense"]}, "measures must be measures of ir_measures or their names"),
        ({"measures": []}, "measures must contain at least one measure"),
        ({"docs": "docs.jsonl"}, "docs must be documents, a dataset or an index, got 'docs.jsonl'"),
        ({"num_results": 0}, "num_results must be a positive integer"),
        ({"qrels": []}, "qrels must be a data frame"),
    ],
    ids=str,
)
def test_inputs_of_wrong_types_raise_value_error(topics, qrels, docs, options, message):
    with pytest.raises(ValueError, match=message):
        Validation(**{"topics": topics, "qrels": qrels, "docs": docs} | options)


def test_judged_only_is_refused_for_candidates(candidates, qrels):
    with pytest.raises(ValueError, match="judged_only has no effect"):
        Validation(candidates, qrels, judged_only=True)


def test_validation_indexes_again_only_if_document_vectors_have_changed(dense, docs, topics, qrels, monkeypatch):
    indexed = []
    index = HypencoderIndexer.index
    monkeypatch.setattr(HypencoderIndexer, "index", lambda self, docs: indexed.append(1) or index(self, docs))
    validation = Validation(topics, qrels, docs)
    other_queries = BiEncoder(dense.name_or_path, device="cpu", doc_max_length=64, query_prefix="a ")
    other_documents = BiEncoder(dense.name_or_path, device="cpu", doc_max_length=64, doc_prefix="a ")
    first = validation(dense)
    for encoder, expected in ((dense, 1), (other_queries, 1), (other_documents, 2), (dense, 3)):
        found = validation(encoder)
        assert len(indexed) == expected
        assert encoder is not dense or found == first

"""Stored document vectors in training."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_training import make_rows, make_trainer

from pyterrier_hypencoder import Hypencoder, HypencoderIndexer
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.frozen_vectors import make_vector_lookup


@pytest.fixture
def untrained_index(untrained, docs, tmp_path):
    """Return an index of the documents by the Hypencoder that is not trained yet."""
    return HypencoderIndexer(tmp_path / "docs.hyp", untrained, dtype="fp32").index(docs)


def test_vectors_come_from_an_index_a_flex_index_or_an_array(untrained_index, docs, tmp_path):
    flex_index = pytest.importorskip("pyterrier_dr").FlexIndex
    flex = untrained_index.to_flex(tmp_path / "docs.flex")
    assert isinstance(flex, flex_index)
    docnos = [doc["docno"] for doc in docs]
    wanted = [docnos[7], docnos[0], docnos[7]]
    vectors = np.asarray(untrained_index.vectors)
    lookups = (make_vector_lookup(untrained_index), make_vector_lookup(flex), make_vector_lookup(vectors, docnos))
    for lookup in lookups:
        np.testing.assert_array_equal(lookup(wanted), vectors[[7, 0, 7]])
        with pytest.raises(ValueError, match=r"has no vectors of 1 documents .*such as \['nowhere'\]"):
            lookup([docnos[0], "nowhere"])


@pytest.mark.parametrize(("source", "docnos"), [(np.zeros((3, 4)), ["a"]), (np.zeros((3, 4)), None), ("index.hyp", None)])
def test_invalid_sources_raise(source, docnos):
    with pytest.raises(ValueError, match="HypencoderIndex, a FlexIndex, or an array"):
        make_vector_lookup(source, docnos)


def test_index_stays_valid_after_training_on_its_vectors(untrained, untrained_index, docs, tokenizer, rows_file, tmp_path):
    def fit(out: str, source, docnos=None):
        trainer = make_trainer(tmp_path / out, untrained, train="queries", max_steps=3)
        collator = Collator(tokenizer, vectors=make_vector_lookup(source, docnos))
        return trainer.fit(make_rows(rows_file, item_texts=False), collator)

    trained = Hypencoder(fit("out", untrained_index), device="cpu")
    assert len(untrained_index.retriever(trained, num_results=5).search("planets")) == 5
    with pytest.raises(ValueError, match=r"Document vectors must have shape \(N, 24\)"):
        fit("wrong", np.zeros((len(docs), 7)), [doc["docno"] for doc in docs])


@pytest.mark.parametrize("docnos", ["abc", iter("abc"), ["a", "b", 3], ["a"]])
def test_docnos_must_be_a_list_of_strings(docnos):
    with pytest.raises(ValueError, match="docnos"):
        make_vector_lookup(np.zeros((3, 4)), docnos)

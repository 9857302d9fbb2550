"""Shared fixtures of the tests of transformers."""

from __future__ import annotations

import shutil

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderRetriever


@pytest.fixture(scope="session")
def full(index, model, topics) -> pd.DataFrame:
    """Return the exhaustive ranking of all documents."""
    return index.retriever(model)(topics)


@pytest.fixture
def retriever(index, model) -> HypencoderRetriever:
    """Return a retriever with default options, which tests may change."""
    return index.retriever(model)


@pytest.fixture(scope="session")
def other_model(golden) -> Hypencoder:
    """Return a model with the same dimensions as ``model`` but another document encoder."""
    return Hypencoder(golden / "tiny_2l_mean_separate_reslast", device="cpu", doc_max_length=64, query_max_length=32)


@pytest.fixture(scope="session")
def index_with_graph(index, tmp_path_factory) -> HypencoderIndex:
    """Return a copy of the index with a neighbour graph of 10 neighbours; tests must not add files to it."""
    path = shutil.copytree(str(index.path), tmp_path_factory.mktemp("graph") / "docs.hyp")
    HypencoderIndex(path).corpus_graph(10)
    return HypencoderIndex(path)


@pytest.fixture(scope="session")
def bm25(topics, docs) -> pt.Transformer:
    """Return 40 documents per query in a fixed order, in place of a lexical retriever."""
    frame = topics[["qid"]].merge(pd.DataFrame({"docno": [doc["docno"] for doc in docs]}), how="cross")
    frame = frame.sample(frac=1, random_state=1).groupby("qid").head(40).sort_values("qid", kind="stable")
    rank = frame.groupby("qid").cumcount()
    return pt.Transformer.from_df(frame.assign(rank=rank, score=100.0 - rank).reset_index(drop=True))


@pytest.fixture(scope="session")
def qrels(full) -> pd.DataFrame:
    """Return qrels in which some of the best documents are relevant, so no system is perfect."""
    relevant = full[full["rank"].isin([1, 5, 9, 15])]
    return relevant[["qid", "docno"]].assign(label=1)

"""Fixtures of the encoder tests: a small bi-encoder, and candidates to re-rank."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from golden_checkpoints import copy_tokenizer, make_bi_encoder

from pyterrier_hypencoder import HypencoderIndexer


@pytest.fixture(scope="session")
def sentences(docs) -> list[str]:
    """Return the texts of the documents."""
    return [doc["text"] for doc in docs]


@pytest.fixture(scope="session")
def bert(golden, tmp_path_factory):
    """Return the directory of a small BERT with random weights."""
    from transformers import AutoConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(AutoConfig.from_pretrained(str(golden / "tiny_base_bert"))).save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def bi(bert):
    """Return a bi-encoder over the small BERT."""
    return make_bi_encoder(bert, query_max_length=32)


@pytest.fixture(scope="session")
def bi_index(bi, docs, tmp_path_factory):
    """Return an index of the documents, built by the bi-encoder."""
    return HypencoderIndexer(tmp_path_factory.mktemp("bi") / "bi.hyp", bi, dtype="fp32").index(docs)


@pytest.fixture(scope="module")
def index(fp32_index):
    """Return the index in float32, because scores of stored vectors are compared with scores of encoded text."""
    return fp32_index


@pytest.fixture(scope="module")
def candidates(topics, docs):
    """Return some documents of each query in random order, with interleaved queries and columns to keep."""
    everything = topics.merge(pd.DataFrame(docs), how="cross")
    some = everything.sample(frac=0.5, random_state=0)
    return some.assign(score=0.5, rank=np.arange(len(some)), docid=-1, note="keep me")

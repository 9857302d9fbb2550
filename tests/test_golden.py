"""Reproduce the released code's numbers: tests/golden, and the folders in HYPENCODER_GOLDEN."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from golden_checkpoints import FOLDERS, HERE, Golden

from pyterrier_hypencoder import Hypencoder, HypencoderIndexer, QNets
from pyterrier_hypencoder.encoders import checkpoint


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def numbers(request) -> Golden:
    return Golden(FOLDERS[request.param])


def assert_scores(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_weights_have_the_released_names_and_shapes(numbers):
    assert {key: list(value.shape) for key, value in numbers.model.state_dict().items()} == numbers.keys


@pytest.mark.parametrize(("name", "batch"), [("doc_emb_batch8", 8), ("doc_emb_single", 1)])
def test_document_vectors_match_the_released_code(numbers, name, batch):
    torch.testing.assert_close(numbers.doc_vectors(batch), numbers.arrays[name], rtol=0, atol=1e-5)


def test_qnets_match_the_released_code(numbers):
    qnets = numbers.qnets()
    for layer, weight in enumerate(qnets.weights):
        torch.testing.assert_close(weight, numbers.arrays[f"W{layer}"], rtol=0, atol=1e-5)
    for layer, bias in enumerate(qnets.biases):
        torch.testing.assert_close(bias, numbers.arrays[f"b{layer}"].squeeze(-1), rtol=0, atol=1e-5)


def test_query_embedding_matches_the_released_code(numbers):
    encoder = numbers.model.query_encoder
    if "q_embedding_representation" not in numbers.arrays:
        with pytest.raises(ValueError, match="embedding_representation"):
            encoder.pool_queries(torch.zeros(1, 2, 24), torch.ones(1, 2))
        return
    for q in range(5):
        ids, mask = numbers.tokens("q", slice(q, q + 1))
        found = encoder.pool_queries(encoder.encode_tokens(ids, mask), mask)[0]
        torch.testing.assert_close(found, numbers.arrays["q_embedding_representation"][q], rtol=0, atol=1e-5)


def test_scores_match_the_released_code(numbers):
    qnets = numbers.qnets()
    assert_scores(qnets.score(numbers.arrays["doc_emb_batch8"]), numbers.arrays["scores"])
    assert_scores(qnets.score(numbers.doc_vectors(8)), numbers.arrays["scores"])
    assert_scores(qnets.score(numbers.doc_vectors(1)), numbers.arrays["scores_single_docs"])


def test_scores_match_for_queries_padded_together(numbers):
    with torch.inference_mode():
        qnets = numbers.model.query_encoder(*numbers.tokens("q", slice(0, 5)))
    assert_scores(qnets.score(numbers.arrays["doc_emb_batch8"]), numbers.arrays["scores_padded_query_batch"])


def test_retriever_order_matches_the_released_code(numbers, tmp_path):
    """Compare rankings for vectors in the released code's batches, with queries encoded from text."""
    docs = [
        {"docno": doc["docno"], "doc_vec": vector.numpy()}
        for doc, vector in zip(numbers.texts["docs"], numbers.doc_vectors(8), strict=True)
    ]
    index = HypencoderIndexer(tmp_path / "golden.hyp", dtype="fp32").index(docs)
    model = Hypencoder(numbers.folder, device="cpu", query_max_length=32, batch_size=1)
    topics = pd.DataFrame(numbers.texts["queries"]).rename(columns={"text": "query"})
    results = index.retriever(model, num_results=20)(topics)
    for qid, expected in numbers.facts["exhaustive"].items():
        found = results[results["qid"] == qid]
        close = 4e-4 * float(numbers.arrays["scores"].abs().max())
        np.testing.assert_allclose(found["score"], [score for _, score in expected], atol=close)
        assert found["docno"].tolist() == [docno for docno, _ in expected]


def test_tokenisation_matches_the_released_code(numbers):
    model = Hypencoder(numbers.folder, device="cpu", doc_max_length=64, query_max_length=32, batch_size=1, pool_padding=True)
    vectors = model.encode_docs([doc["text"] for doc in numbers.texts["docs"]])
    np.testing.assert_allclose(vectors, numbers.arrays["doc_emb_single"], rtol=0, atol=1e-5)
    qnets = model.encode_queries([query["text"] for query in numbers.texts["queries"]])
    torch.testing.assert_close(qnets.weights[0], numbers.arrays["W0"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_saved_checkpoint_gives_the_same_scores(numbers, tmp_path, format):
    checkpoint.save(numbers.model, tmp_path / "saved", format=format)
    again, config = checkpoint.load(str(tmp_path / "saved"), pool_padding=True)
    assert again.state_dict().keys() == numbers.model.state_dict().keys()
    with torch.inference_mode():
        qnets = QNets.cat([again.query_encoder(*numbers.tokens("q", slice(i, i + 1))) for i in range(5)])
        vectors = torch.cat([again.passage_encoder(*numbers.tokens("doc", slice(i, i + 8))) for i in range(0, 120, 8)])
    assert torch.equal(qnets.score(vectors), numbers.qnets().score(numbers.doc_vectors(8)))
    assert config.to_dict().items() >= numbers.model.config.to_dict().items()


def test_released_architecture_builds_offline_in_little_memory():
    """Build a model with 139,603,968 parameters in a new process, because peak memory is measured per process."""
    script = f"""
import json, resource
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig
config = DualEncoderConfig.from_dict(json.load(open({str(HERE / "released_6layer_config.json")!r})))
model = checkpoint.build(config)
import torch
with torch.inference_mode():
    qnets = model.query_encoder(torch.tensor([[101, 2129, 102]]), torch.ones(1, 3, dtype=torch.long))
print(json.dumps([sum(p.numel() for p in model.parameters()), len(model.state_dict()), qnets.flatten().shape[1],
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    parameters, keys, size, peak = json.loads(out.strip().splitlines()[-1])
    assert (parameters, keys, size) == (139_603_968, 502, 3_544_320)
    assert peak * (1 if sys.platform == "darwin" else 1024) < 3 * 2**30

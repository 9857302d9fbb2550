"""The benchmarks: the released search computes what the released code did, and the comparison of searches runs."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from golden_checkpoints import FOLDERS, Golden

from pyterrier_hypencoder.scoring import scorer
from pyterrier_hypencoder.search.graph import graph_search

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import features  # noqa: E402
import released  # noqa: E402
import search  # noqa: E402
from shared.collections import open_collection  # noqa: E402

from pyterrier_hypencoder import HypencoderIndexer, QNets  # noqa: E402


@pytest.fixture(scope="module", params=sorted(name for name, folder in FOLDERS.items() if (folder / "graph.jsonl").exists()))
def numbers(request) -> Golden:
    return Golden(FOLDERS[request.param])


@pytest.mark.parametrize("case", ["a", "b", "c_noearly", "d_topk_gt_ncand"])
def test_the_released_search_gives_the_golden_results_and_ours_the_same_documents(numbers, case):
    given, expected = numbers.facts["approx"][case], numbers.facts["approx_expected_all"][case]
    options = {name: given["params"][name] for name in ("max_iter", "early_stop")}
    vectors, qnets = numbers.arrays["doc_emb_batch8"], numbers.qnets()
    rows = {doc["docno"]: row for row, doc in enumerate(numbers.texts["docs"])}
    lines = map(json.loads, (numbers.folder / "graph.jsonl").read_text().splitlines())
    graph = {line["item_id"]: line["neighbors"] for line in lines}
    assert released.draw_entries(list(rows), given["params"]["num_entry_points"]) == given["entry_ids"]
    edges = np.array([[rows[docno] for docno in graph[item]] for item in rows])
    entries, width = np.array([rows[docno] for docno in given["entry_ids"]]), given["params"]["ncandidates"]
    ours = graph_search(scorer(qnets, device="cpu"), vectors, edges, entries, 5, given["top_k"], n_candidates=width, **options)
    for q, wanted in enumerate(expected.values()):
        score = qnets.select([q]).score
        found, n_scored = released.search(score, rows, vectors, graph, given["entry_ids"], given["top_k"], width, **options)
        assert [docno for docno, _ in found] == [docno for docno, _ in wanted]
        close = 4e-4 * float(numbers.arrays["scores"].abs().max())
        np.testing.assert_allclose([value for _, value in found], [value for _, value in wanted], atol=close)
        assert ours.docids[q].tolist() == [rows[docno] for docno, _ in found]
        if len(score(vectors).unique()) > 100:  # of documents that score the same, either may be expanded
            assert ours.stats["n_scored"][q] == n_scored


WAYS = ["exhaustive", *2 * ["graph"], *3 * ["surrogate"], "released"]


@pytest.fixture
def folder(docs, texts, tmp_path):
    """A test collection of 60 documents, in which the first ones are relevant."""
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs[:60]))
    queries = texts["queries"]
    (tmp_path / "topics.tsv").write_text("".join(f"{query['qid']}\t{query['text']}\n" for query in queries))
    (tmp_path / "qrels.txt").write_text("".join(f"{q['qid']} 0 {d['docno']} 1\n" for q, d in zip(queries, docs, strict=False)))
    return tmp_path


def compared(index, folder: Path, *arguments: str) -> pd.DataFrame:
    """The table of a quick run, checked as far as all such tables are alike."""
    search.main([str(index.path), "--quick", "--k", "10", "--threads", "1", "--out", str(folder / "out"), *arguments])
    assert {path.name for path in (folder / "out").iterdir()} == {"search.csv", "search_ms_p50.png", "search_n_scored.png"}
    table = pd.read_csv(folder / "out" / "search.csv")
    assert (table["ms_p50"] > 0).all() and (table["ms_p50"] <= table["ms_p95"]).all()
    assert table["R@10"].between(0, 1).all() and (table[table["way"].isin(["exhaustive", "dense"])]["R@10"] == 1).all()
    assert table["n_scored"].dropna().between(1, len(index)).all()
    assert "R@100" not in table
    return table


def test_the_searches_of_an_index_by_a_bi_encoder_are_compared(minilm, folder, docs, capsys):
    pytest.importorskip("matplotlib")
    index = HypencoderIndexer(folder / "minilm.hyp", minilm).index(docs[:60])
    table = compared(index, folder, "--dataset", str(folder), "--topics", "3", "--released")
    assert table["way"].tolist() == [*WAYS, "dense", "flat", "hnsw"]
    assert table["nDCG@10"].between(0, 1).all()
    assert table["n_scored"].isna().tolist() == [False] * 8 + [True] * 2
    assert table["ms_batch"].isna().tolist() == [False] * 6 + [True] + [False] * 3
    printed = capsys.readouterr().out
    assert all(line in printed for line in ("encoding q-nets", "encoding query vectors"))
    for scan in ("index", "product"):
        assert re.search(rf"\nsurrogate scan={scan} .*: R@10 1.000, 60 scored", printed)


def test_combined_needs_are_q_nets():
    needs, vectors = torch.randn(5, 4, 16), torch.randn(40, 16)
    inner = needs @ vectors.T
    a, b = inner[:, 0], inner[:, 1]
    expected = {"or2": a.maximum(b), "and2": a.minimum(b), "xor2": (a - b).abs(), "or4": inner.amax(dim=1)}
    for kind in search.COMBINATIONS:
        torch.testing.assert_close(search.combined_qnets(kind, needs).score(vectors), expected[kind], rtol=1e-4, atol=1e-4)


def test_combined_needs_are_searched_in_an_index_made_for_it(minilm, folder):
    pytest.importorskip("matplotlib")
    index = search.open_index(folder / "made.hyp", open_collection(str(folder)))
    assert len(index) == 60 and index.vec_size == minilm.vec_size
    table = compared(index, folder, "--dataset", str(folder), "--topics", "3", "--combine", "or4")
    assert table["way"].tolist() == WAYS[:-1] and "nDCG@10" not in table


def test_random_q_nets_need_no_topics(own_index, tmp_path):
    pytest.importorskip("matplotlib")
    table = compared(own_index, tmp_path, "--random-nets", "2", "--topics", "2", "--released")
    assert table["way"].tolist() == WAYS
    assert table["fell_back"].notna().tolist() == [way == "surrogate" for way in WAYS]
    assert "nDCG@10" not in table


def test_the_state_after_the_first_layer_gives_a_network_of_one_layer_its_scores():
    qnets, vectors = search.random_qnets(1, 16, 1), torch.randn(30, 16)
    qnets = QNets(replace(qnets.spec, do_residual_on_last=True), qnets.weights, qnets.biases)
    state = features.first_layer(qnets, vectors)(torch.arange(30))
    torch.testing.assert_close(state @ qnets.weights[1][0, :, 0], qnets.score(vectors)[0])


def test_richer_features_are_compared(own_index, capsys):
    vectors = torch.randn(3000, 8)
    linear = features.found(vectors @ torch.randn(8), vectors, 100, 2, None, 100)
    assert linear == (216, 1.0)
    features.main([str(own_index.path), "--layers", "2", "--queries", "1", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["linear"] * 3 + ["first"] * 2 + ["products"] * 2
    assert all(float(line.split()[-1]) == 1 for line in lines[1:])  # rounds are as large as the collection

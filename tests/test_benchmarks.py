"""Tests of the benchmarks: the released search gives the golden results, and the comparison of searches runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from golden_checkpoints import FOLDERS, Golden

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.scoring import make_scorer
from pyterrier_hypencoder.search.graph import graph_search

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import checks  # noqa: E402
import dense  # noqa: E402
import int8  # noqa: E402
import released  # noqa: E402
import scale  # noqa: E402
import scale_vectors  # noqa: E402
import scoring as scoring_benchmark  # noqa: E402
import search  # noqa: E402
import stages  # noqa: E402
from shared.datasets import open_collection  # noqa: E402
from synthetic_qnets import COMBINATIONS, make_combined_qnets  # noqa: E402

ALGORITHMS = ["exhaustive", *2 * ["graph"], *2 * ["surrogate"]]


@pytest.fixture(scope="module", params=sorted(name for name, folder in FOLDERS.items() if (folder / "graph.jsonl").exists()))
def numbers(request) -> Golden:
    return Golden(FOLDERS[request.param])


@pytest.mark.parametrize("case", ["a", "b", "c_noearly", "d_topk_gt_ncand"])
def test_released_search_gives_golden_results_and_graph_search_the_same_documents(numbers, case):
    given, expected = numbers.facts["approx"][case], numbers.facts["approx_expected_all"][case]
    options = {name: given["params"][name] for name in ("max_iter", "early_stop")}
    vectors, qnets = numbers.arrays["doc_emb_batch8"], numbers.qnets()
    rows = {doc["docno"]: row for row, doc in enumerate(numbers.texts["docs"])}
    lines = map(json.loads, (numbers.folder / "graph.jsonl").read_text().splitlines())
    neighbours = {line["item_id"]: line["neighbors"] for line in lines}
    assert released.draw_entry_points(list(rows), given["params"]["num_entry_points"]) == given["entry_ids"]
    edges = np.array([[rows[docno] for docno in neighbours[item]] for item in rows])
    entry_points, top_k = np.array([rows[docno] for docno in given["entry_ids"]]), given["top_k"]
    n_candidates = given["params"]["ncandidates"]
    scorer = make_scorer(qnets, device="cpu")
    ours = graph_search(scorer, vectors, edges, entry_points, 5, top_k, n_candidates=n_candidates, **options)
    for q, golden in enumerate(expected.values()):
        score = qnets.select([q]).score
        found, n_scored = released.search(score, rows, vectors, neighbours, given["entry_ids"], top_k, n_candidates, **options)
        assert [docno for docno, _ in found] == [docno for docno, _ in golden]
        tolerance = 4e-4 * float(numbers.arrays["scores"].abs().max())
        np.testing.assert_allclose([value for _, value in found], [value for _, value in golden], atol=tolerance)
        assert ours.docids[q].tolist() == [rows[docno] for docno, _ in found]
        if len(score(vectors).unique()) > 100:  # with many equal scores, the two may expand different documents
            assert ours.stats["n_scored"][q] == n_scored


@pytest.fixture
def folder(docs, texts, tmp_path):
    """A test collection of 60 documents, in which each query has one relevant document."""
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs[:60]))
    queries = texts["queries"]
    (tmp_path / "topics.tsv").write_text("".join(f"{query['qid']}\t{query['text']}\n" for query in queries))
    (tmp_path / "qrels.txt").write_text("".join(f"{q['qid']} 0 {d['docno']} 1\n" for q, d in zip(queries, docs, strict=False)))
    return tmp_path


def run_search_benchmark(index, folder: Path, *arguments: str) -> pd.DataFrame:
    """Run the benchmark with few settings, check what all tables have in common, and return the table."""
    search.main([str(index.path), "--quick", "--k", "10", "--threads", "1", "--out", str(folder / "out"), *arguments])
    assert {path.name for path in (folder / "out").iterdir()} == {"search.csv", "search_ms_p50.png", "search_n_scored.png"}
    table = pd.read_csv(folder / "out" / "search.csv")
    assert (table["ms_p50"] > 0).all() and (table["ms_p50"] <= table["ms_p95"]).all()
    assert table["R@10"].between(0, 1).all() and (table[table["algorithm"].isin(["exhaustive", "dense"])]["R@10"] == 1).all()
    assert table["n_scored"].dropna().between(1, len(index)).all()
    assert "R@100" not in table
    return table


def test_search_benchmark_compares_qnets_and_query_vectors(minilm, folder, docs, capsys):
    pytest.importorskip("matplotlib")
    index = HypencoderIndexer(folder / "minilm.hyp", minilm).index(docs[:60])
    table = run_search_benchmark(index, folder, "--dataset", str(folder), "--topics", "3", "--released")
    assert table["algorithm"].tolist() == [*ALGORITHMS, "released", "dense", "flat", "hnsw"]
    assert table["nDCG@10"].between(0, 1).all()
    assert table["n_scored"].isna().tolist() == [False] * 7 + [True] * 2
    assert table["ms_batch"].isna().tolist() == [False] * 5 + [True] + [False] * 3
    printed = capsys.readouterr().out
    assert all(line in printed for line in ("encoding q-nets", "encoding query vectors"))
    for scan in ("index", "product"):
        assert re.search(rf"\nsurrogate scan={scan} .*: R@10 1.000, 60 scored", printed)


def test_search_benchmark_builds_the_index_and_combines_topics(minilm, folder):
    pytest.importorskip("matplotlib")
    index = search.open_index(folder / "made.hyp", open_collection(str(folder)))
    assert len(index) == 60 and index.vec_size == minilm.vec_size
    table = run_search_benchmark(index, folder, "--dataset", str(folder), "--topics", "3", "--combine", "or4")
    assert table["algorithm"].tolist() == ALGORITHMS and "nDCG@10" not in table


def test_search_benchmark_runs_random_qnets_without_topics(index_copy, tmp_path):
    pytest.importorskip("matplotlib")
    table = run_search_benchmark(index_copy, tmp_path, "--random-nets", "2", "--topics", "2", "--released")
    assert table["algorithm"].tolist() == [*ALGORITHMS, "released"]
    assert table["fell_back"].notna().tolist() == [algorithm == "surrogate" for algorithm in table["algorithm"]]
    assert "nDCG@10" not in table


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_combined_qnets_score_by_combined_inner_products(combination):
    queries, vectors = torch.randn(5, 4, 16), torch.randn(40, 16)
    inner = queries @ vectors.T  # (Q, 4, N)
    a, b = inner[:, 0], inner[:, 1]
    expected = {"or2": a.maximum(b), "and2": a.minimum(b), "xor2": (a - b).abs(), "or4": inner.amax(dim=1)}[combination]
    torch.testing.assert_close(make_combined_qnets(combination, queries).score(vectors), expected, rtol=1e-4, atol=1e-4)


def test_checks_are_measured_for_every_search(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["checks.py", "--documents", "600", "--dimensions", "8", "--repeat", "1"])
    checks.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[4:]] == ["exhaustive", "exhaustive", "graph", "surrogate"]
    assert all(float(line.split()[-1]) > 0 for line in lines[4:])


def test_dense_benchmark_compares_both_packages_on_the_same_vectors(capsys):
    pytest.importorskip("pyterrier_dr")
    arguments = "--documents 300 --dimensions 8 --queries 3 --k 5 --neighbours 8 --threads 1"
    table = dense.main(arguments.split())
    assert table["system"].tolist() == ["ours", "pyterrier_dr"] * 5 and table["ef_search"].tolist()[::2] == [5, 10, 20, 40, 80]
    assert (table[["ms_p50", "ms_batch"]] > 0).all().all() and table["recall"].between(0.5, 1).all()
    assert re.search(r"recall 0.9: ms_p50 .* ratio", capsys.readouterr().out)


def test_int8_benchmark_compares_rankings_with_fp16(minilm, folder, capsys):
    int8.main(["--dataset", str(folder), "--topics", "3", "--docs", "40"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"40 documents, 3 queries, bytes of vectors: {{'fp16': {40 * 384 * 2}, 'int8': {40 * 384}}}"
    assert [line.split()[0] for line in lines[2:]] == ["all-MiniLM-L6-v2", "hypencoder-minilm"]
    numbers = np.array([line.split()[1:] for line in lines[2:]], dtype=float)
    assert (numbers[:, 0] > 0.8).all() and (numbers[:, 1:3] == 1).all() and (numbers[:, 3:] >= 0).all()


def test_scoring_benchmark_reports_shares_of_the_peak_for_all_backends(capsys):
    scoring_benchmark.main("--documents 300 --width 8 --layers 2 --repeat 1 --search".split())
    lines = capsys.readouterr().out.splitlines()
    names = [(line[:18].strip(), line[19:24].strip()) for line in lines if " documents/s " in line]
    assert {("peak", "fp32"), ("peak", "bf16"), ("exhaustive search", "fp32"), ("exhaustive search", "auto")} <= set(names)
    assert {("plain torch", "bf16"), *((name, "fp32") for name in ("plain torch", "cpu", "reference"))} <= set(names)
    assert len([line for line in lines if re.search(r" [0-9.]+% of (fp32|bf16) peak ", line)]) == 8


SCALE_COLUMNS = ["ms_batch", "base_mb", "private_mb", "resident_mb", "open_s"]


def test_scale_benchmark_measures_all_paths_on_made_vectors(minilm, folder, docs, capsys, monkeypatch):
    monkeypatch.setattr(scale, "N_TRIALS", 1)
    HypencoderIndexer(folder / "real.hyp", minilm).index(docs[:60])
    arguments = f"--documents 400 --dataset {folder} --real {folder}/real.hyp --work {folder}/work --out {folder}/out --k 10"
    arguments += " --topics 3 --graph 8 --inner-product --one-process --threads 1"
    table = scale.main(arguments.split()).set_index("path")
    assert tuple(table.index) == scale.PATHS and (table["documents"] == 400).all()
    assert (table[["ms", "encode_ms"]] > 0).all().all() and (table[SCALE_COLUMNS] >= 0).all().all()
    assert (table["R@10"] > 0.9).all() and (table.loc[["exhaustive", "dense", "flat"], "R@10"] == 1).all()
    assert table["n_scored"].isna().tolist() == [path == "flat" for path in scale.PATHS]
    assert (folder / "out" / "scale.csv").exists()
    printed = capsys.readouterr().out
    assert all(f"opening the {part}: " in printed for part in ("index", "graph", "inner-product index"))


def test_scale_benchmark_leaves_out_paths_without_their_index(index_copy, folder, capsys):
    arguments = f"--index {index_copy.path} --dataset {folder} --work {folder}/work --paths graph hnsw surrogate_index"
    assert scale.main([*arguments.split(), "--one-process"]).empty
    assert capsys.readouterr().out.count("left out") == 3


def test_large_scale_benchmark_measures_batches_of_deep_qnets(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "LARGE", {"documents": 500, "dimensions": 16, "layers": 2, "graph": 4})
    arguments = f"--large --work {tmp_path} --topics 4 --k 5 --exhaustive-documents 100 --one-process --threads 1"
    table = scale.main(arguments.split()).set_index("path")
    assert tuple(table.index) == scale.LARGE_PATHS and table["ms"].isna().all()
    assert (table[SCALE_COLUMNS] >= 0).all().all() and table.loc["exhaustive", "n_scored"] == 100


def test_scale_benchmark_reports_a_path_whose_process_ends():
    task = scale.Task("exhaustive", Path("missing.hyp"), pd.DataFrame({"qid": [], "query": []}), 10, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "measure_path", lambda _: (_ for _ in ()).throw(MemoryError))
        assert scale.run_paths([task], own_process=False).to_dict("records") == [
            {"path": "exhaustive", "error": "MemoryError"}
        ]


def test_made_vectors_lie_near_two_texts():
    real = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0].astype(np.float32)
    made = np.concatenate(list(scale_vectors.make_vectors(real, 200)))
    assert made.shape == (200, 40)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    shares = -np.sort(-(made @ real.T), axis=1)
    assert (shares[:, 0] > 0.6).all() and (shares[:, 2] < 0.1).all()


def test_stages_add_up_to_the_time_of_the_search():
    ticks = iter([0.0, 1.0, 4.0, 10.0])
    watch = stages.Stopwatch(lambda: next(ticks))
    with watch.measure("rest"), watch.measure("scan"):
        pass
    assert watch.seconds == {"scan": 3.0, "rest": 7.0}


def test_stages_benchmark_compares_with_dense_search(minilm, folder, docs, monkeypatch):
    monkeypatch.setattr(stages, "N_TRIALS", 1)
    index = HypencoderIndexer(folder / "x.hyp", minilm).index(docs[:60])
    arguments = f"--dataset {folder} --index {index.path} --topics 2 --k 5 --threads 1 --out {folder}/out"
    totals, parts = stages.main(arguments.split())
    assert totals["system"].tolist() == ["dense", "surrogate", "hnsw"] and totals["ms_ratio"].iloc[0] == 1
    assert {"tokenise", "encode", "generate q-nets", "score", "result frame", "rest"} <= set(parts.index)
    assert parts.columns.tolist()[:2] == ["dense", "dense, batches"] and not list(index.path.glob("inner_product*"))
    assert {file.name for file in (folder / "out").iterdir()} == {"stages.csv", "stages_total.csv"}


def test_every_stage_of_the_benchmark_exists():
    names = [name for parts in stages.STAGES.values() for name in parts]
    assert [name for name in names if stages.find_owner(name)[0] is None] == []

"""Tests of the pictures: what they show, and that they can be read without colour."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from pyterrier_hypencoder import HypencoderIndexer, QNets, plots

pytest.importorskip("matplotlib")
import matplotlib  # noqa: E402

matplotlib.use("Agg")


class Model:
    """A model whose q-nets are given."""

    def __init__(self, qnets: QNets) -> None:
        self.qnets = qnets
        self.vec_size = qnets.spec.input_dim

    def encode_queries(self, texts):
        return self.qnets.select(list(range(len(texts))))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def small_index(tmp_path_factory):
    """An index of 300 random vectors with 6 dimensions."""
    vectors = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    docs = [{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]
    return HypencoderIndexer(tmp_path_factory.mktemp("plots") / "small.hyp", dtype="fp32").index(docs)


@pytest.fixture(scope="module")
def linear():
    return Model(QNets.linear(torch.randn(3, 6, generator=torch.Generator().manual_seed(1))))


@pytest.fixture(scope="module")
def bent():
    """Q-nets that return the absolute value of an inner product, beside a third unit with little weight."""
    from pyterrier_hypencoder import QNetSpec

    queries = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    first = torch.stack([queries, -queries, queries.roll(1, 0)], dim=2)
    spec = QNetSpec((6, 3, 1), do_layer_norm=False, do_residual=False)
    return Model(QNets(spec, [first, torch.tensor([1.0, 1.0, 0.01]).reshape(1, 3, 1).expand(3, 3, 1)], [torch.zeros(3, 3)]))


@pytest.fixture
def queries():
    return pd.DataFrame({"qid": ["1", "2", "3"], "query": ["first", "second", "third"]})


@pytest.fixture
def perquery():
    rows = [
        (name, qid, "nDCG@10", v)
        for name, vs in {"a": (0.1, 0.5, 0.5), "b": (0.4, 0.5, 0.3)}.items()
        for qid, v in enumerate(vs)
    ]
    return pd.DataFrame(rows, columns=["name", "qid", "measure", "value"])


@pytest.fixture
def run_folder(tmp_path):
    """A training run with two checkpoints. The log of the last one counts."""
    history = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}, {"step": 20, "eval_nDCG@10": 0.5}]
    for step, log in {9: history[:1], 20: history}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return tmp_path


TABLE = pd.DataFrame(
    {
        "algorithm": ["exhaustive", "graph", "graph", "hnsw"],
        "ms_p50": [80.0, 20.0, 30.0, 1.0],
        "n_scored": [1000.0, 100.0, 200.0, np.nan],
        "R@100": [1.0, 0.99, 0.995, 0.9],
    }
)


def read_series(ax) -> dict[str, np.ndarray]:
    """Map the labels of lines to their points, (n, 2)."""
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def check_readable(ax) -> None:
    """Check title, labels and legend, and that no two series look alike without colour."""
    assert ax.get_title() and ax.get_xlabel() and ax.get_ylabel()
    assert ax.get_legend() is not None
    shown = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    looks = [(line.get_marker(), line.get_linestyle()) for line in shown]
    assert len(set(looks)) == len(looks)
    ax.figure.canvas.draw()


def test_every_picture_is_readable_without_colour(small_index, linear, bent, queries, perquery, run_folder):
    axes = [
        plots.plot_score_surface(small_index, bent, queries),
        plots.plot_line_scores(small_index, bent, queries, ["d1", "d2"]),
        plots.plot_linearity(small_index, linear, queries, label="linear"),
        plots.plot_smaller_qnets(small_index, bent, queries),
        plots.plot_tradeoff(TABLE, "ms_p50"),
        plots.plot_gains(perquery, "nDCG@10", "b", "a"),
        plots.plot_training(run_folder),
        plots.plot_training(run_folder, measure="nDCG@10"),
    ]
    for ax in axes:
        check_readable(ax)
    assert len({id(ax.figure) for ax in axes}) == len(axes)


def test_score_surface_marks_the_best_documents_and_accepts_directions(small_index, linear, queries):
    ax = plots.plot_score_surface(small_index, linear, queries, n_best=4, directions=np.eye(6)[:2])
    best = read_series(ax)["the 4 best"]
    expected = linear.qnets.score(torch.tensor(np.array(small_index.vectors)))[0].topk(4).indices
    centred = small_index.vectors - small_index.vectors.mean(0)
    np.testing.assert_allclose(best, centred[expected.numpy()][:, :2], atol=1e-5)
    assert "'first'" in ax.get_title()
    with pytest.raises(ValueError, match=r"directions must have shape \(2, 6\), got \(2, 5\)"):
        plots.plot_score_surface(small_index, linear, queries, directions=np.eye(5)[:2])
    with pytest.raises(ValueError, match="n_best"):
        plots.plot_score_surface(small_index, linear, queries, n_best=0)


def test_line_scores_of_an_inner_product_are_straight_and_others_bend(small_index, linear, bent, queries):
    for model, is_straight in ((linear, True), (bent, False)):
        points = read_series(plots.plot_line_scores(small_index, model, queries.head(1), ["d1", "d2"]))["first"]
        straight = np.interp(points[:, 0], [0, 1], points[[0, -1], 1])
        assert np.allclose(points[:, 1], straight, atol=1e-4) == is_straight
    with pytest.raises(ValueError, match="two documents"):
        plots.plot_line_scores(small_index, linear, queries, ["d1"])
    with pytest.raises(ValueError, match="nowhere"):
        plots.plot_line_scores(small_index, linear, queries, ["d1", "nowhere"])


def test_linearity_tells_inner_products_from_others(small_index, linear, bent, queries):
    ax = plots.plot_linearity(small_index, linear, queries, label="linear")
    assert plots.plot_linearity(small_index, bent, queries, label="bent", ax=ax) is ax
    straight, other = read_series(ax).values()
    assert straight[:, 1].min() >= 0.95 and other[:, 1].max() <= 0.8
    assert ax.get_ylim()[0] < other[:, 1].min() and ax.get_ylim()[1] > 1
    check_readable(ax)


def test_smaller_qnets_lose_overlap_and_need_hidden_layers(small_index, linear, bent, queries):
    points = next(iter(read_series(plots.plot_smaller_qnets(small_index, bent, queries)).values()))
    assert points[:, 0].tolist() == [3, 1]
    assert points[0, 1] == 1 and points[1, 1] < 0.8
    with pytest.raises(ValueError, match="hidden layers"):
        plots.plot_smaller_qnets(small_index, linear, queries)


def test_smaller_qnets_end_with_the_inner_product(minilm, docs, topics, tmp_path):
    from pyterrier_hypencoder import Hypencoder

    index = HypencoderIndexer(tmp_path / "docs.hyp", minilm).index(docs[:20])
    points = next(iter(read_series(plots.plot_smaller_qnets(index, Hypencoder("hypencoder-minilm"), topics)).values()))
    assert points[:, 0].tolist() == [96, 48, 24, 12, 6, 3, 1, 0]


def test_model_recorded_in_the_index_and_query_vectors_serve_as_queries(index, topics, small_index):
    check_readable(plots.plot_linearity(index, None, topics))
    vectors = pd.DataFrame({"qid": ["1"], "query_vec": [np.ones(6, dtype=np.float32)]})
    assert "'1'" in plots.plot_score_surface(small_index, None, vectors).get_title()
    with pytest.raises(ValueError, match="at least one row"):
        plots.plot_linearity(index, None, topics.head(0))


def test_large_indexes_are_sampled(small_index, linear, queries, monkeypatch):
    monkeypatch.setattr(plots, "MAX_DOCS", 100)
    assert len(read_series(plots.plot_score_surface(small_index, linear, queries))["documents (100)"]) == 100


def test_tradeoff_fits_axes_to_the_data_and_explains_series(tmp_path):
    TABLE.to_csv(tmp_path / "table.csv", index=False)
    ax = plots.plot_tradeoff(tmp_path / "table.csv", "ms_p50")
    assert list(read_series(ax)) == [
        *("exhaustive: every document", "graph: Algorithm 1 of the paper, 2 settings", "hnsw: inner product, approximate")
    ]
    assert 0.85 < ax.get_ylim()[0] < 0.9 and 1 < ax.get_ylim()[1] < 1.02
    assert ax.get_xscale() == "log" and ax.get_xlim()[0] > 0.5 and ax.get_xlim()[1] < 110
    assert len(plots.plot_tradeoff(TABLE).lines) == 2  # hnsw has no number of scored documents
    experiment = pd.DataFrame({"name": ["BM25"], "nDCG@10": [0.5], "mrt": [2.0]})
    assert list(read_series(plots.plot_tradeoff(experiment, "mrt"))) == ["BM25"]
    with pytest.raises(ValueError, match=r"columns \['nowhere'\]"):
        plots.plot_tradeoff(TABLE, "nowhere")
    with pytest.raises(ValueError, match="one of the columns"):
        plots.plot_tradeoff(TABLE.drop(columns="R@100"))
    with pytest.raises(ValueError, match="got none"):
        plots.plot_tradeoff(TABLE[3:])


def test_gains_count_topics_and_name_unknown_systems(perquery):
    ax = plots.plot_gains(perquery, "nDCG@10", "b", "a")
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {
        *("1 topics gain", "1 topics lose", "1 topics stay the same")
    }
    heights = [patch.get_height() for container in ax.containers for patch in container]
    np.testing.assert_allclose(heights, [0.3, -0.2, 0])
    with pytest.raises(ValueError, match="'c'"):
        plots.plot_gains(perquery, "nDCG@10", "c", "a")
    with pytest.raises(ValueError, match="perquery=True"):
        plots.plot_gains(TABLE, "nDCG@10", "b", "a")


def test_training_reads_the_log_of_the_last_checkpoint(run_folder, tmp_path_factory):
    assert read_series(plots.plot_training(run_folder, label="run"))["run"].tolist() == [[10, 2.0], [20, 1.0]]
    with pytest.raises(ValueError, match="'eval_RR'"):
        plots.plot_training(run_folder, measure="RR")
    with pytest.raises(FileNotFoundError, match="output_dir"):
        plots.plot_training(tmp_path_factory.mktemp("empty"))


def test_import_loads_no_matplotlib_and_a_missing_one_names_the_command():
    script = (
        "import sys; from pyterrier_hypencoder import plots; assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "import pandas as pd\n"
        "try: plots.plot_tradeoff(pd.DataFrame({'name': ['a'], 'mrt': [1.0], 'nDCG@10': [0.5]}), 'mrt')\n"
        "except ImportError as err: print(err)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'pyterrier-hypencoder[plots]'" in done.stdout, done.stderr

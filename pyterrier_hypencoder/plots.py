"""Pictures of q-nets, search costs and training runs, drawn with matplotlib.

Every function returns matplotlib's ``Axes`` with a title, units and a legend. Series differ in markers, hatching or line
styles as well as in colour, so the pictures can be read in greyscale. Pass ``ax`` to draw into a figure of your own. A
second call with the same ``ax`` adds a series to pictures of several models.

Install matplotlib by ``pip install 'pyterrier-hypencoder[plots]'``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .encoders.stages import make_qnets
from .options import check_positive
from .qnet import QNets
from .search.linearity import CUTOFF, fit_linear_scores, measure_overlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DOCS = 20_000
"""Number of documents that a picture of q-nets reads, evenly spaced over the index."""
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
_MARKERS = "os^DvPX*"
_LINES = ("-", "--", "-.", ":")
_LABELS = {
    "ms_p50": "time per query, median (ms)",
    "ms_p95": "time per query, 95th percentile (ms)",
    "ms_batch": "time per query in batches (ms)",
    "mrt": "time per query, mean (ms)",
    "n_scored": "documents scored per query",
    "NumScored": "documents scored per query",
    "n_rounds": "rounds per query",
}
_SERIES = {
    "exhaustive": "exhaustive: every document",
    "graph": "graph: Algorithm 1 of the paper",
    "surrogate": "surrogate: linear fits",
    "released": "released: the authors' search",
    "dense": "dense: inner product",
    "flat": "flat: the same by FAISS",
    "hnsw": "hnsw: inner product, approximate",
}


def plot_score_surface(
    index: Any,
    model: Any,
    topics: pd.DataFrame,
    *,
    directions: Any = None,
    n_best: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Plot the scores of one query over a plane through the collection.

    The plane contains the mean of the document vectors. Documents are projected onto it. The score of a document is not that
    of its projection, so the best documents need not lie on the brightest spot. An inner product has straight, parallel and
    equally spaced contour lines.

    Args:
        index: ``HypencoderIndex`` with the document vectors.
        model: ``Hypencoder`` or ``BiEncoder``. None uses the model that is recorded in the index.
        topics: Frame with qid, and query or query_vec. The first topic is shown.
        directions: Two directions that span the plane, (2, D). None uses the first two principal components.
        n_best: Number of best documents to mark.
        ax: Axes to draw into. None makes a figure.
    """
    check_positive("n_best", n_best)
    qnets, vectors = _read(index, model, topics.head(1))
    centre = vectors.mean(0)
    plane = _span_plane(vectors - centre, directions)
    places = ((vectors - centre) @ plane.T).numpy()  # (N, 2)
    low, high = places.min(0), places.max(0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    xs, ys = (np.linspace(low[i] - margin[i], high[i] + margin[i], 60) for i in (0, 1))
    grid = torch.tensor(np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2), dtype=torch.float32)
    surface = qnets.score(centre + grid @ plane)[0].reshape(60, 60).numpy()
    best = qnets.score(vectors)[0].topk(min(n_best, len(vectors))).indices.numpy()
    ax = _make_axes(ax)
    filled = ax.contourf(xs, ys, surface, levels=12, cmap="cividis")
    lines = ax.contour(xs, ys, surface, levels=np.asarray(filled.levels)[::2], colors="white", linewidths=0.8)
    ax.clabel(lines, fontsize=7)
    ax.plot(*places.T, ".", color="black", markersize=2, alpha=0.5, label=f"documents ({len(places)})")
    style: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 8}
    ax.plot(*places[best].T, "^", **style, label=f"the {len(best)} best")
    ax.figure.colorbar(filled, ax=ax, label="score")
    kind = "principal component" if directions is None else "direction"
    ax.set(xlabel=f"first {kind}", ylabel=f"second {kind}", title=f"Scores for {_name_queries(topics)[0]!r}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)
    return ax


def plot_line_scores(
    index: Any,
    model: Any,
    topics: pd.DataFrame,
    docnos: Sequence[str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Plot the scores along the straight line between the vectors of two documents.

    The scores of an inner product lie on the dotted line. A q-net may bend, or have its maximum in between.

    Args:
        index: ``HypencoderIndex`` with the document vectors.
        model: ``Hypencoder`` or ``BiEncoder``. None uses the model that is recorded in the index.
        topics: Frame with qid, and query or query_vec. Every topic becomes a line.
        docnos: Docnos of the two documents.
        ax: Axes to draw into. None makes a figure.

    Raises:
        ValueError: If there are not two documents, or the index does not contain them.
    """
    if len(docnos) != 2:
        raise ValueError(f"docnos must be the docnos of two documents, got {list(docnos)!r:.80}.")
    qnets = _make_qnets(index, model, topics)
    start, end = torch.tensor(np.asarray(index.vectors[index.docnos.require(list(docnos))], dtype=np.float32))
    share = torch.linspace(0, 1, 101)
    scores = qnets.score(torch.lerp(start, end, share[:, None])).numpy()  # (Q, 101)
    ax = _make_axes(ax)
    for number, (name, row) in enumerate(zip(_name_queries(topics), scores, strict=True)):
        ax.plot(share, row, **_style(number), markevery=20, label=shorten(name, 40))
        ax.plot([0, 1], row[[0, -1]], ":", color="grey", linewidth=1, label=None if number else "inner product (straight)")
    ax.set(xlabel=f"share of the way from {docnos[0]}\nto {docnos[1]}", ylabel="score")
    ax.set_title("Scores between two documents")
    ax.legend(fontsize=8)
    return ax


def plot_linearity(index: Any, model: Any, topics: pd.DataFrame, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot how well the best inner product ranks in place of each q-net.

    For every topic, a linear function is fitted to the ranking of the q-net. The overlap is the share of the first 100
    documents that both rankings have in common. It is about 1 for q-nets that are nearly linear.

    Args:
        index: ``HypencoderIndex`` with the document vectors. A large one is sampled down to :data:`MAX_DOCS`.
        model: ``Hypencoder`` or ``BiEncoder``. None uses the model that is recorded in the index.
        topics: Frame with qid, and query or query_vec. Each topic needs a fit over all documents.
        label: Name of the series. None shows the mean overlap only.
        ax: Axes to draw into. None makes a figure. Repeated calls add series.
    """
    qnets, vectors = _read(index, model, topics)
    double = vectors.double()
    overlaps = []
    for scores in qnets.score(vectors).double():
        overlaps.append(measure_overlap(scores, fit_linear_scores(double, scores)))
    ax = _make_axes(ax)
    k, number = min(CUTOFF, len(vectors)), len(ax.lines)
    name = f"{label}, mean" if label else "mean"
    place = np.linspace(0, 100, len(overlaps)) if len(overlaps) > 1 else np.array([50.0])
    marks = max(1, len(overlaps) // 8)
    ax.plot(place, sorted(overlaps), **_style(number), markevery=marks, label=f"{name} {np.mean(overlaps):.3f}")
    ax.set(xlabel="topics, sorted by overlap (%)", ylabel=f"overlap of the first {k} with the best linear fit")
    ax.set_title("How linear are the q-nets?")
    ax.set_ylim(min(0.95, ax.get_ylim()[0], min(overlaps) - 0.02), 1.02)
    ax.legend(fontsize=8)
    return ax


def plot_smaller_qnets(
    index: Any, model: Any, topics: pd.DataFrame, *, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot what is lost if hidden layers are narrowed to their first units.

    Width 0 drops all hidden layers and keeps the inner product, for q-nets that have one. The models need no retraining for
    this, but only Matryoshka models are trained for it.

    Args:
        index: ``HypencoderIndex`` with the document vectors. A large one is sampled down to :data:`MAX_DOCS`.
        model: ``Hypencoder``. None uses the model that is recorded in the index.
        topics: Frame with qid, and query or query_vec.
        label: Name of the series.
        ax: Axes to draw into. None makes a figure. Repeated calls add series.

    Raises:
        ValueError: If the q-nets have no hidden layers.
    """
    qnets, vectors = _read(index, model, topics)
    if not qnets.spec.bias_sizes:
        raise ValueError("plot_smaller_qnets needs q-nets with hidden layers, got inner products. Pass a Hypencoder.")
    whole, full = qnets.score(vectors), max(qnets.spec.bias_sizes)
    widths = [full]
    while widths[-1] > 1:
        widths.append(widths[-1] // 2)
    smaller = {width: qnets.narrow(width) for width in widths}
    if qnets.query_vectors is not None:
        smaller[0] = QNets.linear(qnets.query_vectors)
    overlaps = [
        np.mean([measure_overlap(one, other) for one, other in zip(whole, nets.score(vectors), strict=True)])
        for nets in smaller.values()
    ]
    ax = _make_axes(ax)
    k = min(CUTOFF, len(vectors))
    ax.plot(list(smaller), overlaps, **_style(len(ax.lines)), label=label or f"{len(topics)} topics, mean")
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(list(smaller), [str(width) for width in smaller])
    ax.set(xlabel="units kept in each hidden layer", ylabel=f"overlap of the first {k} with the whole q-net")
    ax.set_title("What narrowing costs")
    ax.set_ylim(min(0.9, ax.get_ylim()[0]), 1.01)
    ax.legend(fontsize=8)
    return ax


def plot_tradeoff(
    table: pd.DataFrame | str | os.PathLike[str],
    x: str = "n_scored",
    y: str | None = None,
    *,
    series: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot quality against the cost of a search.

    Args:
        table: Table of ``benchmarks/search.py`` (a frame or the path of its CSV file), or result of ``pt.Experiment``.
        x: Column with the cost, such as ``n_scored``, ``ms_p50``, ``NumScored`` or ``mrt``. Rows without it are left out.
        y: Column with the quality. None takes the first of R@100, R@10 and nDCG@10.
        series: Column that names the series. None takes ``algorithm`` or ``name``.
        ax: Axes to draw into. None makes a figure.

    Raises:
        ValueError: If a column is missing, or no row has a cost.
    """
    if not isinstance(table, pd.DataFrame):
        table = pd.read_csv(table)
    y = y or _choose_column(table, ("R@100", "R@10", "nDCG@10"), "y")
    series = series or _choose_column(table, ("algorithm", "name"), "series")
    missing = [name for name in (x, y, series) if name not in table]
    if missing:
        raise ValueError(f"The table must have the columns {missing}, got {list(table.columns)}.")
    rows = table.dropna(subset=[x, y])
    if not len(rows):
        raise ValueError(f"The table must have rows with {x} and {y}, got none.")
    ax = _make_axes(ax)
    for number, (name, group) in enumerate(rows.groupby(series, sort=False)):
        label = _SERIES.get(str(name), str(name)) + (f", {len(group)} settings" if len(group) > 1 else "")
        ax.plot(group[x], group[y], **{**_style(number), "linestyle": "none"}, label=label)
    _fit_axis(ax, "x", rows[x])
    _fit_axis(ax, "y", rows[y])
    quality = f"{y} against exhaustive search" if y.startswith("R@") and series == "algorithm" else y
    cost = _LABELS.get(x, x)
    ax.set(xlabel=cost, ylabel=quality, title=f"{y} against {cost.split(' (')[0]}")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="best")
    return ax


def plot_gains(table: pd.DataFrame, measure: str, system: str, baseline: str, *, ax: Axes | None = None) -> Axes:
    """Plot by how much each topic gains or loses against a baseline.

    Args:
        table: Result of ``pt.Experiment(..., perquery=True)``, with the columns name, qid, measure and value.
        measure: Name of the measure, such as ``nDCG@10``.
        system: Name of the system.
        baseline: Name of the baseline.
        ax: Axes to draw into. None makes a figure.

    Raises:
        ValueError: If the table lacks a column, the measure or a system.
    """
    missing = [name for name in ("name", "qid", "measure", "value") if name not in table]
    if missing:
        raise ValueError(f"The table must have the columns {missing}. Call pt.Experiment with perquery=True.")
    values = table[table["measure"] == str(measure)].pivot(index="qid", columns="name", values="value")
    for name in (system, baseline):
        if name not in values:
            raise ValueError(f"The table must have {measure} of {name!r}, got it for {list(values.columns)}.")
    change = (values[system] - values[baseline]).sort_values(ascending=False).to_numpy()
    ax = _make_axes(ax)
    place = np.arange(len(change)) + 1
    kinds: list[tuple[str, Any, str, str | None]] = [("gain", change > 0, "#0072b2", None)]
    kinds += [("lose", change < 0, "#e69f00", "////"), ("stay the same", change == 0, "none", None)]
    for name, chosen, colour, hatch in kinds:
        label = f"{chosen.sum()} topics {name}"
        ax.bar(
            place[chosen], change[chosen], width=1.0, color=colour, hatch=hatch, edgecolor="black", linewidth=0, label=label
        )
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel="topics, sorted by change", ylabel=f"change of {measure}", title=f"{system} against {baseline}")
    ax.legend(fontsize=8)
    return ax


def plot_training(
    run: str | os.PathLike[str], *, label: str | None = None, measure: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot the loss of a training run, or a measure of its validations.

    Args:
        run: ``output_dir`` of a ``HypencoderTrainer``. The log of its last checkpoint is read.
        label: Name of the run. None uses the name of the directory.
        measure: Measure of the validation, such as ``nDCG@10``. None shows the loss.
        ax: Axes to draw into. None makes a figure. Repeated calls add runs.

    Raises:
        FileNotFoundError: If the directory has no checkpoint.
        ValueError: If the log does not have the loss or the measure.
    """
    history = _read_history(Path(run))
    column = "loss" if measure is None else f"eval_{measure}"
    points = [(row["step"], row[column]) for row in history if column in row]
    if not points:
        known = sorted({key for row in history for key in row})
        raise ValueError(f"The log of {run} must have {column!r}, got {known}. Set logging_steps or validate while training.")
    ax = _make_axes(ax)
    steps, values = zip(*points, strict=True)
    ax.plot(steps, values, **_style(len(ax.lines)), markevery=max(1, len(points) // 8), label=label or Path(run).name)
    ax.set(xlabel="optimiser step", ylabel=measure or "training loss", title="Validation" if measure else "Training")
    ax.legend(fontsize=8)
    return ax


def _make_axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as err:
        raise ImportError("Plots need the package matplotlib. Run: pip install 'pyterrier-hypencoder[plots]'") from err
    return plt.subplots(figsize=(6.5, 4.2), layout="constrained")[1]


def _style(number: int) -> dict[str, Any]:
    """Return colour, marker and line style of a series, which all differ from those of the series before it."""
    return {"color": _COLOURS[number % 8], "marker": _MARKERS[number % 8], "linestyle": _LINES[number % 4]}


def _make_qnets(index: Any, model: Any, topics: pd.DataFrame) -> QNets:
    if not len(topics):
        raise ValueError("topics must have at least one row, got none.")
    model = index.model() if model is None and "query_vec" not in topics else model
    return make_qnets(topics, model, index.vec_size).to("cpu", torch.float32)


def _read(index: Any, model: Any, topics: pd.DataFrame) -> tuple[QNets, Tensor]:
    """Return the q-nets of the topics, and at most :data:`MAX_DOCS` document vectors, (N, D) float32."""
    step = max(1, -(-len(index) // MAX_DOCS))
    return _make_qnets(index, model, topics), torch.tensor(np.asarray(index.vectors[::step], dtype=np.float32))


def _name_queries(topics: pd.DataFrame) -> list[str]:
    return [str(name) for name in topics["query" if "query" in topics else "qid"]]


def _span_plane(centred: Tensor, directions: Any) -> Tensor:
    """Return two orthonormal directions, (2, D)."""
    if directions is None:
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        return vectors[:, -2:].T.flip(0)
    given = torch.as_tensor(np.asarray(directions), dtype=torch.float32)
    if given.shape != (2, centred.shape[1]):
        raise ValueError(f"directions must have shape (2, {centred.shape[1]}), got {tuple(given.shape)}.")
    first = given[0] / given[0].norm()
    second = given[1] - (given[1] @ first) * first
    return torch.stack([first, second / second.norm()])


def _choose_column(table: pd.DataFrame, names: Sequence[str], option: str) -> str:
    found = [name for name in names if name in table]
    if not found:
        raise ValueError(f"The table must have one of the columns {list(names)}, got {list(table.columns)}. Pass {option}=...")
    return found[0]


def _fit_axis(ax: Axes, axis: str, values: pd.Series) -> None:
    """Use a logarithmic x axis for a wide range, and limits with a small margin around the data."""
    from matplotlib.ticker import LogLocator

    low, high = float(values.min()), float(values.max())
    if axis == "x" and low > 0 and high > 10 * low:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.3, high * 1.3)
        if high < 1000 * low:  # label 1, 2, 5, 10 instead of powers only
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
    else:
        margin = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-3)
        getattr(ax, f"set_{axis}lim")(low - margin, high + margin)


def _read_history(folder: Path) -> list[dict[str, Any]]:
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    if not states:
        raise FileNotFoundError(f"{folder} has no checkpoint with a log. Pass the output_dir of a HypencoderTrainer.")
    return json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]

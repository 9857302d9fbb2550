"""What each way of searching finds, and what it costs: one index, one set of topics, and all ways in one run.

    python benchmarks/search.py INDEX --dataset FOLDER|apidocs|irds:... [--model hypencoder-minilm] [--topics 50] [--k 100]
    python benchmarks/search.py INDEX --dataset FOLDER --combine or4  # q-nets for any of four needs
    python benchmarks/search.py INDEX --random-nets 6                # without texts: how searches fare with any q-net

Ways are exhaustive search, Algorithm 1 (``graph``), surrogate search (by a product with all vectors, ``scan=product``, or by
the inner-product index), and with ``--released`` the published code's search.
What they aim at is search with query vectors: where a bi-encoder made the index, exhaustive search over the same vectors
(``dense``), and FAISS with all of them in memory, exhaustive (``flat``) and by ``hnsw``. Of each option several values
are tried while the others stay as they are by default.

For every setting the table has the documents scored per query (not for FAISS, which does not say); milliseconds per query of
single queries (median and 95th percentile) and in batches of up to 32 (median), all settings tried three times in turn; R@n,
the share of the n best documents of exhaustive search with the same q-nets or query vectors that are found; and nDCG@10 where
there are judgements. Making q-nets is timed apart. The folder ``--out`` gets the table as search.csv, and pictures of quality
against time and against documents scored.
"""

import argparse
import functools
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pyterrier as pt
import released
import torch
from pyterrier.measures import nDCG
from torch import Tensor

from pyterrier_hypencoder import BiEncoder, HypencoderIndex, HypencoderIndexer, HypencoderRetriever, QNets, QNetSpec, scoring
from pyterrier_hypencoder.encoders.loading import load_encoder
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.graph import PRESETS, draw_entry_points, graph_search
from pyterrier_hypencoder.search.results import Results
from pyterrier_hypencoder.search.surrogate import default_n_initial, surrogate_search

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from shared.collections import open_collection  # noqa: E402

BATCH = 32
REPEATS = 3
COMBINATIONS = ("or2", "or4", "and2", "xor2")
EXHAUSTIVE = ("exhaustive", "dense")
DEPTHS = (10, 100, 1000)
DOC_LENGTH = 128  # tokens of a document
DEFAULTS = HypencoderRetriever()

Search = Callable[[slice], Results]
"""Searches with some of the queries."""


@dataclass(frozen=True)
class Way:
    """One setting of one way of searching.

    Attributes:
        name: of the way.
        options: what was set.
        search: searches.
        batches: whether it takes several queries at a time.
    """

    name: str
    options: dict[str, Any]
    search: Search
    batches: bool = True


class Bench:
    """An index, q-nets, and the settings of all searches.

    Args:
        index: the index.
        qnets: of all queries.
        k: results per query.
        quick: whether to try few settings.
    """

    def __init__(self, index: HypencoderIndex, qnets: QNets, k: int, quick: bool) -> None:
        self.index = index
        self.vectors = index.vectors
        self.qnets = qnets
        self.k = k
        self.quick = quick
        self.edges = index.corpus_graph(DEFAULTS.graph_k, verbose=True).edges_data
        self.inner_products = index.inner_product_index(verbose=True)
        self.device = scoring.resolve_device("auto")

    def exhaustive_search(self, qnets: QNets) -> Search:
        """Search over all documents."""

        def search(part: slice) -> Results:
            nets = qnets.select(part)
            return exhaustive_search(scoring.make_scorer(nets), self.vectors, len(nets), self.k)

        return search

    def graph(self, *, initial_candidates: int, n_candidates: int, max_iter: int) -> Search:
        """Algorithm 1."""
        entries = draw_entry_points(len(self.index), initial_candidates)

        def search(part: slice) -> Results:
            nets = self.qnets.select(part)
            return graph_search(
                scoring.make_scorer(nets),
                self.vectors,
                self.edges,
                entries,
                len(nets),
                self.k,
                device=self.device,
                n_candidates=n_candidates,
                max_iter=max_iter,
            )

        return search

    def surrogate(
        self,
        *,
        scan: str,
        n_initial: int,
        n_per_round: int,
        max_rounds: int,
        fallback: str = DEFAULTS.fallback,
        polish: bool = False,
    ) -> Search:
        """Surrogate search."""
        seeds = draw_entry_points(len(self.index), n_initial)

        def search(part: slice) -> Results:
            nets = self.qnets.select(part)
            return surrogate_search(
                scoring.make_scorer(nets),
                self.vectors,
                seeds,
                len(nets),
                self.k,
                scan=self.inner_products if scan == "index" else None,
                device=self.device,
                start=nets.query_vectors,
                max_rounds=max_rounds,
                n_per_round=n_per_round,
                ridge=DEFAULTS.ridge,
                fallback=fallback,
                polish=polish,
                neighbours=self.edges,
                n_candidates=DEFAULTS.n_candidates,
                max_iter=DEFAULTS.max_iter,
            )

        return search

    def released(self) -> Search:
        """The published code's search, with Algorithm 1's own options."""
        docnos = self.index.docnos.at(np.arange(len(self.index))).tolist()
        rows = {docno: row for row, docno in enumerate(docnos)}
        graph = {docno: [docnos[other] for other in row.tolist()] for docno, row in zip(docnos, self.edges, strict=True)}
        vectors = torch.from_numpy(np.array(self.vectors, dtype=np.float32)).to(self.device)
        qnets, options = self.qnets.to(self.device), self._efficient()
        entries = released.draw_entries(docnos, options.pop("initial_candidates"))

        @torch.inference_mode()
        def search(part: slice) -> Results:
            score = qnets.select(part).score
            found, n_scored = released.search(
                score, rows, vectors, graph, entries, self.k, options["n_candidates"], options["max_iter"]
            )
            docids = np.array([rows[docno] for docno, _ in found])
            return Results([docids], [np.array([value for _, value in found])], {"n_scored": np.array([n_scored])})

        return search

    def faiss(self, queries: np.ndarray, built: Any, parameters: Any = None) -> Search:
        """Search for query vectors in one of FAISS's indexes."""

        def search(part: slice) -> Results:
            scores, docids = built.search(queries[part], self.k, params=parameters)
            return Results(list(docids), list(scores))

        return search

    def ways(self, with_released: bool) -> Iterator[Way]:
        """All searches with q-nets, the exhaustive one first."""
        yield Way("exhaustive", {}, self.exhaustive_search(self.qnets))
        for options in self.graph_settings():
            yield Way("graph", options, self.graph(**options))
        for options in self.surrogate_settings():
            yield Way("surrogate", options, self.surrogate(**options))
        if with_released:
            yield Way("released", self._efficient(), self.released(), batches=False)

    def dense_ways(self, queries: np.ndarray) -> Iterator[Way]:
        """The searches with query vectors, the exhaustive one first."""
        yield Way("dense", {}, self.exhaustive_search(QNets.linear(torch.from_numpy(queries))))
        vectors = np.array(self.vectors, dtype=np.float32)
        flat = faiss.IndexFlatIP(self.index.vec_size)
        flat.add(vectors)
        yield Way("flat", {}, self.faiss(queries, flat))
        graph = faiss.IndexHNSWFlat(self.index.vec_size, 32, faiss.METRIC_INNER_PRODUCT)
        graph.add(vectors)
        for beam in (self.k,) if self.quick else (self.k, 2 * self.k, 4 * self.k):
            search = self.faiss(queries, graph, faiss.SearchParametersHNSW(efSearch=beam))
            yield Way("hnsw", {"ef": beam}, search)

    def graph_settings(self) -> list[dict[str, Any]]:
        """Those of the paper's Figure 2: each option around Efficient 1, and around few entry points."""
        count, efficient = len(self.index), self._efficient()
        few = max(1, count // 1000)
        settings = [efficient]
        settings += [efficient | {"initial_candidates": n} for n in (few, 100, 500, 1000, 10_000) if n < count]
        for start in (few, efficient["initial_candidates"]):
            base = efficient | {"initial_candidates": start}
            settings += [base | {"n_candidates": n} for n in (16, 32, 128, 328)]
            settings += [base | {"max_iter": n} for n in (1, 2, 4, 8, 12)]
        return self._distinct(settings, 2)

    def surrogate_settings(self) -> list[dict[str, Any]]:
        """Each option around the retriever's values, which come first, with either scan."""
        seeds = default_n_initial(self.index.vec_size, started=self.qnets.query_vectors is not None)
        base = {"scan": "product", "n_initial": seeds, "n_per_round": max(250, self.k // 2), "max_rounds": DEFAULTS.rounds}
        settings: list[dict[str, Any]] = [
            base,
            base | {"scan": "index"},
            base | {"fallback": "graph"},
            base | {"polish": True},
        ]
        settings += [base | {"n_initial": n} for n in (64, 256, 1024) if n < len(self.index)]
        settings += [base | {"n_per_round": n} for n in (100, 250, 500, 1000)]
        settings += [base | {"max_rounds": n} for n in (1, 2, 3, 4, 16)]
        return self._distinct(settings, 3)

    def _efficient(self) -> dict[str, int]:
        """The paper's Efficient 1; of small collections a tenth are entry points."""
        options = {name: value for name, value in PRESETS["efficient_1"].items() if name != "search"}
        if options["initial_candidates"] >= len(self.index):
            options["initial_candidates"] = max(1, len(self.index) // 10)
        return options

    def _distinct(self, settings: list[dict[str, Any]], few: int) -> list[dict[str, Any]]:
        """All settings once, or where few are wanted the first of them."""
        kept = [options for place, options in enumerate(settings) if options not in settings[:place]]
        return kept[:few] if self.quick else kept


def random_qnets(queries: int, vec_size: int, layers: int) -> QNets:
    """Q-nets that nobody trained (He's initialisation), with the residuals and layer norms of the released ones."""
    spec = QNetSpec((*[vec_size] * (layers + 1), 1))
    weights = [torch.randn(queries, i, o) * (2 / i) ** 0.5 for i, o in spec.weight_shapes]
    return QNets(spec, weights, [torch.zeros(queries, size) for size in spec.bias_sizes])


def combined_qnets(kind: str, needs: Tensor) -> QNets:
    """Q-nets that score documents by several inner products: the best one, the worst one, or by how much two differ.

    Args:
        kind: one of :data:`COMBINATIONS`.
        needs: (Q, 4, D), of which all but ``or4`` take the first two.
    """
    a, b, c, d = needs.unbind(1)
    first, *others = {  # max(a, b) = relu(a - b) + relu(b) - relu(-b), and so on
        "or2": ([a - b, b, -b], [[1.0], [1.0], [-1.0]]),
        "and2": ([a - b, a, -a], [[-1.0], [1.0], [-1.0]]),
        "xor2": ([a - b, b - a], [[1.0], [1.0]]),
        "or4": (
            [a - b, b, -b, c - d, d, -d],
            [[1.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0], [-1.0, 1.0, -1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]],
            [[1.0], [1.0], [-1.0]],
        ),
    }[kind]
    weights = [torch.stack(first, dim=2), *(torch.tensor(rows).expand(len(needs), -1, -1) for rows in others)]
    sizes = [weight.shape[2] for weight in weights]
    spec = QNetSpec((needs.shape[2], *sizes), do_layer_norm=False, do_residual=False)
    return QNets(spec, weights, [torch.zeros(len(needs), size) for size in sizes[:-1]])


def milliseconds(function: Callable[[slice], Any], n_queries: int, step: int) -> tuple[list[Any], list[float]]:
    """What a function gives for queries, so many at a time, and the time of each call."""
    found, times = [], []
    for first in range(0, n_queries, step):
        start = time.perf_counter()
        found.append(function(slice(first, min(first + step, n_queries))))
        times.append(1000 * (time.perf_counter() - start))
    return found, times


def recall(results: Results, truth: Results, depth: int) -> float:
    """The mean share of the best documents that were found."""
    pairs = zip(results.docids, truth.docids, strict=False)  # the released search is tried with the first queries only
    return float(np.mean([np.isin(best[:depth], found[:depth]).mean() for found, best in pairs]))


def timed(way: Way, queries: int) -> tuple[list[Results], list[float], float]:
    """The results of single queries, their times, and the mean time of a query in batches."""
    found, single = milliseconds(way.search, queries, 1)
    batches = sum(milliseconds(way.search, queries, BATCH)[1]) / queries if way.batches else np.nan
    return found, single, batches


def measured(ways: list[Way], queries: int, k: int) -> Iterator[tuple[dict[str, Any], Results]]:
    """For each way a row of the table, and its results; those after an exhaustive way should find what that one does.

    They are tried in turn, so that a machine that is slower for a while is so for all.
    """
    for way in ways:
        way.search(slice(0, 1))  # what is done only once is not counted
    gc.freeze()  # the released search's many objects would be looked through while others are timed
    rounds = [[timed(way, queries) for way in pt.tqdm(ways, desc=f"trial {n} of {REPEATS}")] for n in range(1, REPEATS + 1)]
    truth: Results | None = None
    for way, trials in zip(ways, zip(*rounds, strict=True), strict=True):
        found, single, batches = zip(*trials, strict=True)
        results = functools.reduce(Results.then, found[0])
        truth = results if way.name in EXHAUSTIVE or truth is None else truth
        row = {
            "way": way.name,
            "options": " ".join(f"{name}={value}" for name, value in way.options.items()),
            "ms_p50": np.percentile(np.concatenate(single), 50),
            "ms_p95": np.percentile(np.concatenate(single), 95),
            "ms_batch": np.median(batches),
        }
        row |= {name: float(np.mean(values)) for name, values in results.stats.items()}
        row |= {f"R@{depth}": recall(results, truth, depth) for depth in DEPTHS if depth <= k}
        yield row, results


def ndcg(results: Results, topics: pd.DataFrame, qrels: pd.DataFrame, index: HypencoderIndex) -> float:
    """nDCG@10 over the queries that were tried."""
    qids = topics["qid"].iloc[: len(results.docids)]
    parts = [
        pd.DataFrame({"qid": qid, "docno": index.docnos.at(ids[:10]), "score": values[:10]})
        for qid, ids, values in zip(qids, results.docids, results.scores, strict=True)
    ]
    run = pd.concat(parts).assign(query="")
    return pt.Evaluate(pt.model.add_ranks(run), qrels[qrels["qid"].isin(qids)], [nDCG @ 10])["nDCG@10"]


def make_table(bench: Bench, ways: list[Way], topics: pd.DataFrame | None, qrels: pd.DataFrame | None) -> pd.DataFrame:
    """Tries the ways."""
    rows: list[dict[str, Any]] = []
    for row, results in measured(ways, len(bench.qnets), bench.k):
        if topics is not None and qrels is not None and len(qrels):
            row["nDCG@10"] = ndcg(results, topics, qrels, bench.index)
        rows.append(row)
    return pd.DataFrame(rows)


def encoded(name: str, model: Any, queries: list[str]) -> QNets:
    """Encodes queries, and prints how long that takes."""
    model.encode_queries(queries[:1])
    _, single = milliseconds(lambda part: model.encode_queries(queries[part]), min(len(queries), BATCH), 1)
    parts, times = milliseconds(lambda part: model.encode_queries(queries[part]), len(queries), BATCH)
    print(f"encoding {name}: {np.median(single):.1f} ms per query, {sum(times) / len(queries):.1f} in batches of {BATCH}")
    return QNets.cat(parts)


def open_index(path: Path, collection: Any) -> HypencoderIndex:
    """The index; made of a collection by MiniLM, whose vectors the default model searches, where there is none yet."""
    if not path.exists() and collection is not None:
        encoder = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", doc_max_length=DOC_LENGTH)
        indexer = HypencoderIndexer(path, encoder, text_field=collection.text_fields, mode="resume", verbose=True)
        indexer.index(collection.docs())
    return HypencoderIndex(path)


def topics_of(collection: Any, number: int) -> pd.DataFrame:
    """Some of a collection's topics, drawn from those that have judgements."""
    topics, qrels = collection.topics, collection.qrels
    if len(qrels):
        topics = topics[topics["qid"].isin(qrels["qid"])]
    return topics.sample(min(number, len(topics)), random_state=0).reset_index(drop=True)


def summarize_quality(table: pd.DataFrame) -> str:
    """The column by which ways are compared."""
    return "R@100" if "R@100" in table else "R@10"


def summary(table: pd.DataFrame) -> Iterator[str]:
    """How surrogate search with either scan compares: with the settings of Algorithm 1 that find as much, and the others."""
    for place in (0, 1):
        yield from compared(table, table[table["way"] == "surrogate"].iloc[place])


def compared(table: pd.DataFrame, surrogate: pd.Series) -> Iterator[str]:
    """How one setting of surrogate search compares."""
    quality = summarize_quality(table)
    graph = table[table["way"] == "graph"]
    rivals = []
    for enough in (surrogate[quality], 0.99, 0.95):
        good = graph[graph[quality] >= enough]
        rivals += [good.nsmallest(1, column) for column in ("n_scored", "ms_p50")]
    best = graph.sort_values([quality, "n_scored"], ascending=[False, True]).iloc[:1]
    others = table[table["way"].isin(["released", "exhaustive", "dense", "flat", "hnsw"])].drop_duplicates("way")
    own = f"{quality} {surrogate[quality]:.3f}, {surrogate['n_scored']:.0f} scored, {surrogate['ms_p50']:.1f} ms"
    yield f"surrogate {surrogate['options']}: {own}"
    for _, rival in pd.concat([best, *rivals, others]).drop_duplicates(["way", "options"]).iterrows():
        scored = "" if np.isnan(rival["n_scored"]) else f"{rival['n_scored'] / surrogate['n_scored']:.1f}x its documents, "
        batch = "" if np.isnan(rival["ms_batch"]) else f", {rival['ms_batch'] / surrogate['ms_batch']:.2f}x in batches"
        time_ratio = f"{rival['ms_p50'] / surrogate['ms_p50']:.2f}x its time"
        yield f"{rival['way']} {rival['options']}".rstrip() + f": {quality} {rival[quality]:.3f}, {scored}{time_ratio}{batch}"


def draw(table: pd.DataFrame, folder: Path) -> None:
    """Draws quality against time, and against documents scored."""
    from matplotlib.figure import Figure

    quality = summarize_quality(table)
    for column, label in (("ms_p50", "ms per query"), ("n_scored", "documents scored per query")):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        for way, rows in table.dropna(subset=[column]).groupby("way", sort=False):
            axes.plot(rows[column], rows[quality], "o", label=way)
        axes.set(xscale="log", xlabel=label, ylabel=f"{quality} against exhaustive search")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(folder / f"search_{column}.png", dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Runs the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="directory of an index; where there is none, one by MiniLM is made")
    parser.add_argument("--dataset", help="apidocs, irds:NAME or a folder; see examples/shared/collections.py")
    parser.add_argument("--model", default="hypencoder-minilm", help="directory or hub id of a Hypencoder")
    parser.add_argument("--random-nets", type=int, metavar="L", help="random q-nets of L hidden layers, in place of a model's")
    parser.add_argument("--combine", choices=COMBINATIONS, help="q-nets for this and other topics at once, by query vectors")
    parser.add_argument("--topics", type=int, default=50)
    parser.add_argument("--k", type=int, default=100, help="results per query, at least 10")
    parser.add_argument("--released", action="store_true", help="also the published code's search")
    parser.add_argument("--out", type=Path, default=Path("search_benchmark"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="few settings")
    options = parser.parse_args(arguments)
    if (options.dataset is None) == (options.random_nets is None):
        parser.error("expected either --dataset or --random-nets")
    if options.k < 10:
        parser.error(f"--k: expected at least 10, found {options.k}")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    collection = None if options.dataset is None else open_collection(options.dataset)
    index = open_index(options.index, collection)
    print(f"torch {torch.__version__}, {scoring.resolve_device('auto')}, {len(index)} documents, {options}")
    topics = qrels = None
    if options.random_nets is not None:
        qnets = random_qnets(options.topics, index.vec_size, options.random_nets)
    else:
        topics, qrels = topics_of(collection, options.topics), collection.qrels
        qnets = encoded("q-nets", load_encoder(options.model), topics["query"].tolist())
    if options.combine is not None:
        if qnets.query_vectors is None:
            parser.error("--combine: expected a model whose q-nets have query vectors")
        qnets = combined_qnets(options.combine, torch.stack([qnets.query_vectors.roll(7 * n, 0) for n in range(4)], dim=1))
        qrels = None  # nobody judged such needs
    bench = Bench(index, qnets, options.k, options.quick)
    ways = list(bench.ways(options.released))
    if topics is not None and options.combine is None and isinstance(index.model(), BiEncoder):
        vectors = encoded("query vectors", index.model(), topics["query"].tolist()).weights[0][:, :, 0].cpu().numpy()
        ways += bench.dense_ways(vectors)
    table = make_table(bench, ways, topics, qrels)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "search.csv", index=False)
    print(table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3f}" if value < 10 else f"{value:.1f}"))
    print("\n".join(summary(table)))
    draw(table, options.out)


if __name__ == "__main__":
    main()

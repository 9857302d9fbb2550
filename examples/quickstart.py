"""The main job on real text: index, search, re-rank and compare, on a collection that every machine has.

Without options it makes a test collection from the documentation of installed libraries (see shared/apidocs.py), so that it
needs neither Java nor a download. On another collection::

    python examples/quickstart.py --dataset irds:vaswani       # any ir_datasets collection (downloads it)
    python examples/quickstart.py --dataset my-collection      # a folder: docs.jsonl[.gz], topics.tsv, qrels.txt
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pyterrier as pt
from pyterrier.measures import RR, R, nDCG
from shared.bm25 import BM25
from shared.collections import Collection, open_collection

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer
from pyterrier_hypencoder.transformers.measures import NumScored

CUTOFF = 100
GRAPH_K = 100
#: What one point of BM25 counts beside a cosine, so that the best scores of both are about as large.
BM25_WEIGHT = 0.02


def minilm(max_length: int) -> BiEncoder:
    """all-MiniLM-L6-v2, from the wheel that holds it or from the hub."""
    return BiEncoder("sentence-transformers/all-MiniLM-L6-v2", doc_max_length=max_length)


def systems(index: Any, bm25: pt.Transformer, model: BiEncoder) -> dict[str, pt.Transformer]:
    """The systems to compare, each of which returns at most 100 documents.

    The bundled Hypencoder searches the index that MiniLM made: it was trained to, documents frozen.
    """
    dense = index.retriever(model, num_results=CUTOFF)
    hypencoder = Hypencoder("hypencoder-minilm")
    index.corpus_graph(GRAPH_K)
    ways = {
        search: index.retriever(
            hypencoder,
            num_results=CUTOFF,
            algorithm=search,
            graph_k=GRAPH_K,
            initial_candidates=-(-len(index) // 50),
            return_stats=True,
        )
        for search in ("exhaustive", "graph", "surrogate")
    }
    return {
        "BM25": bm25,
        "MiniLM": dense,
        "Hypencoder": ways["exhaustive"],
        "Hypencoder, graph": ways["graph"],
        "Hypencoder, surrogate": ways["surrogate"],
        "BM25 >> Hypencoder, graph": bm25 >> ways["graph"],
        "BM25 >> MiniLM": bm25 >> index.scorer(model),
        "BM25 >> Hypencoder": bm25 >> index.scorer(hypencoder),
        "BM25 + MiniLM": (bm25 * BM25_WEIGHT + dense) % CUTOFF,
    }


def show_first_results(names: list[str], pipelines: list[pt.Transformer], collection: Collection) -> None:
    """Prints what two systems find first for one query."""
    query = collection.topics.iloc[0]
    relevant = set(collection.qrels[(collection.qrels["qid"] == query["qid"]) & (collection.qrels["label"] > 0)]["docno"])
    print(f"First results for {query['query']!r} (* is relevant):")
    for name, pipeline in zip(names, pipelines, strict=True):
        print(f"  {name}")
        for hit in pipeline.search(query["query"]).sort_values("rank").head(3).itertuples():
            print(f"    {hit.rank}  {hit.score:7.3f}  {'*' if hit.docno in relevant else ' '} {hit.docno}")


def main() -> None:
    """Runs the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description="Index, search, re-rank and compare on one collection.")
    parser.add_argument("--dataset", default="apidocs", help="apidocs (default), irds:NAME, or a folder")
    parser.add_argument("--index", help="where to keep the index; a temporary directory by default")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a document that are encoded (default 128)")
    options = parser.parse_args()

    collection = open_collection(options.dataset)
    fields = collection.text_fields
    model = minilm(options.max_length)
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        path = options.index or Path(temporary) / "quickstart.hyp"
        indexer = HypencoderIndexer(path, model, text_field=fields, mode="overwrite", verbose=True)
        index = indexer.index(collection.docs())
        print(f"\n{collection.name}: {len(index)} documents, {len(collection.topics)} topics")
        print(f"indexed in {time.perf_counter() - start:.0f} s: vectors of {index.vec_size} dimensions\n")

        bm25 = BM25(num_results=CUTOFF, text_field=fields).index(collection.docs())
        compared = systems(index, bm25, model)
        for pipeline in compared.values():  # loads the model, so that response times are those of searching
            pipeline.search("warm up")
        table = pt.Experiment(
            list(compared.values()),
            collection.topics,
            collection.qrels,
            [nDCG @ 10, RR, R @ CUTOFF, NumScored, "mrt"],
            names=list(compared),
            baseline=0,
            correction="holm",
            filter_by_qrels=True,
            validate="ignore",  # not every system says how many documents it evaluated
        )
        columns = ["name", "nDCG@10", "RR", f"R@{CUTOFF}", "NumScored", "mrt", "nDCG@10 p-value corrected", "nDCG@10 reject"]
        print(table[columns].to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
        print("NumScored: documents that q-nets evaluated; mrt: ms per query")
        print("p-values: paired t-test against BM25, Holm-corrected\n")
        show_first_results(list(compared)[:2], list(compared.values())[:2], collection)


if __name__ == "__main__":
    main()

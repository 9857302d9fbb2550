"""Index a collection, search it, re-rank with it, and compare with BM25 and a dense model.

By default the collection is built from the documentation of installed libraries (see ``shared/apidocs.py``), so neither Java
nor a download is needed. Other collections::

    python examples/quickstart.py --dataset irds:vaswani       # any ir_datasets collection, which is downloaded
    python examples/quickstart.py --dataset my-collection      # a folder: docs.jsonl[.gz], topics.tsv, qrels.txt
"""

import argparse
import tempfile
import time
from pathlib import Path

import pyterrier as pt
from pyterrier.measures import RR, R, nDCG
from shared.bm25 import BM25
from shared.collection import Collection
from shared.datasets import open_collection

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndex, HypencoderIndexer, NumScored

CUTOFF = 100
GRAPH_K = 100
#: Weight of a BM25 score beside a cosine. The best scores of both are then about equal.
BM25_WEIGHT = 0.02
MEASURES = [nDCG @ 10, RR, R @ CUTOFF, NumScored, "mrt"]


def make_systems(index: HypencoderIndex, bm25: pt.Transformer, minilm: BiEncoder) -> dict[str, pt.Transformer]:
    """Make the systems to compare.

    The bundled Hypencoder searches the index that MiniLM built, because it was trained with MiniLM's document vectors.
    """
    hypencoder = Hypencoder("hypencoder-minilm")
    index.corpus_graph(GRAPH_K, verbose=True)
    dense = index.retriever(minilm, num_results=CUTOFF)
    exhaustive, graph, surrogate = (
        index.retriever(
            hypencoder,
            num_results=CUTOFF,
            algorithm=algorithm,
            graph_k=GRAPH_K,
            initial_candidates=-(-len(index) // 50),  # 2% of the documents are entry points
            return_stats=True,
        )
        for algorithm in ("exhaustive", "graph", "surrogate")
    )
    return {
        "BM25": bm25,
        "MiniLM": dense,
        "Hypencoder": exhaustive,
        "Hypencoder, graph": graph,
        "Hypencoder, surrogate": surrogate,
        "BM25 >> Hypencoder, graph": bm25 >> graph,
        "BM25 >> MiniLM": bm25 >> index.scorer(minilm),
        "BM25 >> Hypencoder": bm25 >> index.scorer(hypencoder),
        "BM25 + MiniLM": (bm25 * BM25_WEIGHT + dense) % CUTOFF,
    }


def print_comparison(systems: dict[str, pt.Transformer], collection: Collection) -> None:
    """Print a table of all systems, with significance tests against the first one."""
    for pipeline in pt.tqdm(systems.values(), desc="loading models"):  # on first use, which must not count as search time
        pipeline.search("warm up")
    table = pt.Experiment(
        list(systems.values()),
        collection.topics,
        collection.qrels,
        MEASURES,
        names=list(systems),
        baseline=0,
        verbose=True,
        correction="holm",
        filter_by_qrels=True,
        validate="ignore",  # only Hypencoder retrievers return the column that NumScored reads
    )
    columns = ["name", *map(str, MEASURES), "nDCG@10 p-value corrected", "nDCG@10 reject"]
    print(table[columns].to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
    print("NumScored: documents that a q-net scored, per query; mrt: ms per query")
    print("p-values: paired t-test against BM25, Holm-corrected\n")


def print_first_results(systems: dict[str, pt.Transformer], collection: Collection) -> None:
    """Print the first three results of each system for one topic."""
    topic = collection.topics.iloc[0]
    judged = collection.qrels[collection.qrels["qid"] == topic["qid"]]
    relevant = set(judged.loc[judged["label"] > 0, "docno"])
    print(f"First results for {topic['query']!r} (* is relevant):")
    for name, pipeline in systems.items():
        print(f"  {name}")
        for hit in pipeline.search(topic["query"]).sort_values("rank").head(3).itertuples():
            print(f"    {hit.rank}  {hit.score:7.3f}  {'*' if hit.docno in relevant else ' '} {hit.docno}")


def main() -> None:
    """Index the collection that the command line names, and compare all systems on it."""
    parser = argparse.ArgumentParser(description="Index, search, re-rank and compare on one collection.")
    parser.add_argument("--dataset", default="apidocs", help="apidocs (default), irds:NAME or a folder")
    parser.add_argument("--index", help="directory of the index; by default it is temporary")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a document that are encoded (default 128)")
    options = parser.parse_args()

    collection = open_collection(options.dataset)
    fields = collection.text_fields
    minilm = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", doc_max_length=options.max_length)
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        path = options.index or Path(temporary) / "quickstart.hyp"
        indexer = HypencoderIndexer(path, minilm, text_field=fields, mode="overwrite", verbose=True)
        index = indexer.index(collection.docs())
        print(f"\n{collection.name}: {len(index)} documents, {len(collection.topics)} topics")
        print(f"indexed in {time.perf_counter() - start:.0f} s: vectors with {index.vec_size} dimensions\n")

        print("indexing with BM25, building the neighbour graph and comparing the systems ...")
        bm25 = BM25(num_results=CUTOFF, text_field=fields).index(collection.docs())
        systems = make_systems(index, bm25, minilm)
        print_comparison(systems, collection)
        print_first_results({name: systems[name] for name in ("BM25", "MiniLM", "Hypencoder")}, collection)


if __name__ == "__main__":
    main()

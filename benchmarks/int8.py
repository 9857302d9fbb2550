"""Measure what int8 storage of document vectors does to rankings.

    python benchmarks/int8.py --dataset FOLDER [--topics 100] [--docs 12000]

An index with ``dtype="int8"`` and one with ``dtype="fp16"`` are built from the same vectors and searched exhaustively by the
same q-nets. The columns are

* ``overlap@10`` and ``R@100``: share of the best documents over fp16 vectors that the int8 index finds,
* ``R@100, 200 re-scored``: the same, if the best 200 documents of the int8 index are scored again with fp16 vectors,
* ``nDCG@10`` with fp16 and with int8 vectors, if there are relevance judgements.
"""

import argparse
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier.measures import nDCG

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndex, HypencoderIndexer

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from shared.collection import Collection  # noqa: E402
from shared.datasets import open_collection  # noqa: E402

DOC_LENGTH = 128


def build_indexes(model: BiEncoder, collection: Collection, limit: int, folder: Path) -> dict[str, HypencoderIndex]:
    """Return an index of the first documents in each precision. They record no model, because two models search them."""
    fields = list(collection.text_fields)
    fp32 = HypencoderIndexer(folder / "fp32.hyp", model, dtype="fp32", text_field=fields).index(
        islice(collection.docs(), limit)
    )
    dtypes = ("fp16", "int8")
    return {dtype: HypencoderIndexer(folder / f"{dtype}.hyp", dtype=dtype).index(fp32.get_corpus_iter()) for dtype in dtypes}


def measure_overlap(found: pd.DataFrame, truth: pd.DataFrame, k: int) -> float:
    """Return the mean share of the k best documents of a run that are among the k best of another one."""
    runs = [run[run["rank"] < k].groupby("qid")["docno"].agg(set) for run in (found, truth)]
    return float(np.mean([len(runs[0][qid] & docnos) / len(docnos) for qid, docnos in runs[1].items()]))


def compare(model: BiEncoder, indexes: dict[str, HypencoderIndex], collection: Collection, topics: pd.DataFrame) -> dict:
    """Return one row of the table."""
    options = {"algorithm": "exhaustive", "num_results": 200, "device": "cpu"}
    runs = {dtype: index.retriever(model, **options)(topics) for dtype, index in indexes.items()}
    again = indexes["fp16"].scorer(model, device="cpu")(runs["int8"])
    row = {
        "overlap@10": measure_overlap(runs["int8"], runs["fp16"], 10),
        "R@100": measure_overlap(runs["int8"], runs["fp16"], 100),
        "R@100, 200 re-scored": measure_overlap(again, runs["fp16"], 100),
    }
    if len(collection.qrels):
        qrels = collection.qrels[collection.qrels["qid"].isin(topics["qid"])]
        row |= {f"nDCG@10 {dtype}": pt.Evaluate(run, qrels, [nDCG @ 10])["nDCG@10"] for dtype, run in runs.items()}
    return row


def main(arguments: list[str] | None = None) -> None:
    """Build the indexes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="apidocs, irds:NAME or a folder; see examples/shared/datasets.py")
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--docs", type=int, default=12_000, help="documents to encode, from the beginning")
    args = parser.parse_args(arguments)
    collection = open_collection(args.dataset)
    minilm = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", doc_max_length=DOC_LENGTH)
    topics = collection.topics.head(args.topics)
    models = {"all-MiniLM-L6-v2": minilm, "hypencoder-minilm": Hypencoder("hypencoder-minilm")}
    with tempfile.TemporaryDirectory() as folder:
        indexes = build_indexes(minilm, collection, args.docs, Path(folder))
        sizes = {dtype: index.reader.vectors_file.stat().st_size for dtype, index in indexes.items()}
        rows = {name: compare(model, indexes, collection, topics) for name, model in models.items()}
        print(f"{len(indexes['fp16'])} documents, {len(topics)} queries, bytes of vectors: {sizes}")
    print(pd.DataFrame.from_dict(rows, orient="index").to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()

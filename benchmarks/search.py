"""Compare the quality and the costs of all searches on one index with one set of topics.

    python benchmarks/search.py INDEX --dataset FOLDER|apidocs|irds:... [--model hypencoder-minilm] [--topics 50] [--k 100]
    python benchmarks/search.py INDEX --dataset FOLDER --combine or4    # q-nets that combine four query vectors
    python benchmarks/search.py INDEX --random-nets 6                   # random q-nets, without texts

The searches with q-nets are exhaustive search, Algorithm 1 (``graph``) and surrogate search. Surrogate search scans the
collection by a product with all vectors (``scan=product``) or by the inner-product index (``scan=index``). With
``--released`` the search of the published code takes part.

If the index was built by a bi-encoder, searches with its query vectors are compared too: exhaustive search (``dense``), and
FAISS with all vectors in memory, exhaustive (``flat``) or approximate (``hnsw``). Each option takes several values, while the
other options keep their defaults.

The table has one row per setting. Its columns are

* ``ms_p50`` and ``ms_p95``: milliseconds per query, one query at a time, over three trials;
* ``ms_batch``: milliseconds per query in batches of 32, median of three trials;
* ``n_scored``: scored documents per query, which FAISS does not report;
* ``R@n``: share of the n best documents of exhaustive search with the same q-nets or query vectors;
* ``nDCG@10``: if there are relevance judgements.

Encoding of queries is timed separately. The folder ``--out`` receives the table as ``search.csv``, and plots of recall
against time and against scored documents.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import torch
from search_report import format_table, plot, summarize
from search_settings import SearchSettings
from search_timing import BATCH_SIZE, make_table, time_calls
from synthetic_qnets import COMBINATIONS, make_combined_qnets, make_random_qnets

from pyterrier_hypencoder import BiEncoder, HypencoderIndex, HypencoderIndexer, QNets, scoring
from pyterrier_hypencoder.encoders.loading import load_encoder

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from shared.collection import Collection  # noqa: E402
from shared.datasets import open_collection  # noqa: E402

#: Tokens of a document that are encoded, if the index must be built.
DOC_LENGTH = 128


def open_index(path: Path, collection: Collection | None) -> HypencoderIndex:
    """Open the index, or build it with MiniLM, whose vectors the default model searches."""
    if not path.exists() and collection is not None:
        encoder = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", doc_max_length=DOC_LENGTH)
        indexer = HypencoderIndexer(path, encoder, text_field=collection.text_fields, mode="resume", verbose=True)
        indexer.index(collection.docs())
    return HypencoderIndex(path)


def sample_topics(collection: Collection, number: int) -> pd.DataFrame:
    """Draw some of the collection's topics, from those with relevance judgements if there are any."""
    topics, qrels = collection.topics, collection.qrels
    if len(qrels):
        topics = topics[topics["qid"].isin(qrels["qid"])]
    return topics.sample(min(number, len(topics)), random_state=0).reset_index(drop=True)


def encode_queries(label: str, model: Any, queries: list[str]) -> QNets:
    """Encode queries and print how long it takes."""
    model.encode_queries(queries[:1])  # warm up
    _, single = time_calls(lambda part: model.encode_queries(queries[part]), min(len(queries), BATCH_SIZE), 1)
    parts, batches = time_calls(lambda part: model.encode_queries(queries[part]), len(queries), BATCH_SIZE)
    per_query = sum(batches) / len(queries)
    print(f"encoding {label}: {np.median(single):.1f} ms per query, {per_query:.1f} in batches of {BATCH_SIZE}")
    return QNets.cat(parts)


def combine_topics(combination: str, qnets: QNets) -> QNets:
    """Combine the query vectors of each topic and of three others."""
    if qnets.query_vectors is None:
        raise SystemExit("--combine needs a model whose q-nets have query vectors. Choose another --model.")
    return make_combined_qnets(combination, torch.stack([qnets.query_vectors.roll(7 * n, 0) for n in range(4)], dim=1))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="directory of the index; if it does not exist, MiniLM builds it")
    parser.add_argument("--dataset", help="apidocs, irds:NAME or a folder; see examples/shared/datasets.py")
    parser.add_argument("--model", default="hypencoder-minilm", help="directory or hub id of a Hypencoder")
    parser.add_argument("--random-nets", type=int, metavar="L", help="use random q-nets with L hidden layers")
    parser.add_argument("--combine", choices=COMBINATIONS, help="use q-nets that combine the query vectors of several topics")
    parser.add_argument("--topics", type=int, default=50)
    parser.add_argument("--k", type=int, default=100, help="results per query, at least 10")
    parser.add_argument("--released", action="store_true", help="include the search of the published code")
    parser.add_argument("--out", type=Path, default=Path("search_benchmark"), help="folder for the table and the plots")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="try two settings per algorithm")
    options = parser.parse_args(arguments)
    if (options.dataset is None) == (options.random_nets is None):
        parser.error("give either --dataset or --random-nets")
    if options.k < 10:
        parser.error(f"--k must be at least 10, got {options.k}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison that the command line asks for."""
    options = parse_options(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    collection = None if options.dataset is None else open_collection(options.dataset)
    index = open_index(options.index, collection)
    print(f"torch {torch.__version__}, {scoring.resolve_device('auto')}, {len(index)} documents, {options}")
    qrels = query_vectors = None
    if collection is None:
        topics = pd.DataFrame({"qid": [str(number) for number in range(options.topics)]})
        qnets = make_random_qnets(options.topics, index.vec_size, options.random_nets)
    else:
        topics = sample_topics(collection, options.topics)
        queries = topics["query"].tolist()
        qnets = encode_queries("q-nets", load_encoder(options.model), queries)
        if options.combine is not None:
            qnets = combine_topics(options.combine, qnets)  # there are no judgements for combined topics
        else:
            qrels = collection.qrels
            if isinstance(index.model(), BiEncoder):
                linear = encode_queries("query vectors", index.model(), queries)
                query_vectors = linear.weights[0][:, :, 0].cpu().numpy()

    maker = SearchSettings(index, qnets, options.k, options.quick)
    settings = list(maker.make_qnet_settings(options.released))
    if query_vectors is not None:
        settings += maker.make_dense_settings(query_vectors)
    table = make_table(settings, options.k, index, topics, qrels)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "search.csv", index=False)
    print(format_table(table))
    print("\n".join(summarize(table)))
    plot(table, options.out)


if __name__ == "__main__":
    main()

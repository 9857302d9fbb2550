"""Measure how far the q-nets of a model are from linear.

For each topic, a linear function of the document vector is fitted to the ranking of the q-net. It shows the best ranking
that a query vector could reach. The overlap of a bi-encoder is 1, except for errors of the fit.

Example::

    python examples/measure_linearity.py hypencoder-minilm apidocs
"""

import argparse
import tempfile
from pathlib import Path

from shared.datasets import open_collection
from shared.linearity import compare_with_linear

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.encoders.loading import load_encoder


def main() -> None:
    """Index a collection and measure the linearity of the model that the command line names."""
    parser = argparse.ArgumentParser(description="Compare q-nets with the best inner products that approximate them.")
    parser.add_argument("model", help="hypencoder-minilm, a hub id or the directory of a checkpoint")
    parser.add_argument("dataset", help="apidocs, irds:NAME or a folder")
    options = parser.parse_args()
    collection = open_collection(options.dataset)
    model = load_encoder(options.model, doc_max_length=256)
    with tempfile.TemporaryDirectory() as folder:
        indexer = HypencoderIndexer(Path(folder) / "index.hyp", model, text_field=collection.text_fields)
        index = indexer.index(collection.docs())
        for name, value in compare_with_linear(model, index, collection.topics, collection.qrels).items():
            print(f"{name:15s} {value:.4f}")


if __name__ == "__main__":
    main()

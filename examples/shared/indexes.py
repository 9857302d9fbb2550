"""Index documents with all-MiniLM-L6-v2, and join such indexes."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyterrier_hypencoder import BiEncoder, HypencoderIndex, HypencoderIndexer
from shared.collection import Collection

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
#: Tokens of a document that are encoded.
DOC_LENGTH = 256


def load_minilm(doc_length: int = DOC_LENGTH) -> BiEncoder:
    """Load MiniLM from its wheel, or from the hub if the wheel is not installed."""
    return BiEncoder(MINILM, doc_max_length=doc_length)


def index_docs(
    path: Path,
    docs: Callable[[], Iterable[Mapping[str, Any]]],
    text_fields: list[str],
    doc_length: int = DOC_LENGTH,
) -> HypencoderIndex:
    """Open an index. If it does not exist, index the documents with MiniLM first.

    Args:
        path: Directory of the index. An interrupted run is resumed.
        docs: Function that returns the documents.
        text_fields: Fields with text. Documents without a field count as empty there.
        doc_length: Tokens of a document that are encoded.
    """
    if not path.exists():
        indexer = HypencoderIndexer(path, load_minilm(doc_length), text_field=text_fields, mode="resume", verbose=True)
        indexer.index({**dict.fromkeys(text_fields, ""), **doc} for doc in docs())
    return HypencoderIndex(path)


def index_collection(path: Path, collection: Collection, doc_length: int = DOC_LENGTH) -> HypencoderIndex:
    """Open the index of a test collection, or build it with MiniLM. See :func:`index_docs`."""
    return index_docs(path, collection.docs, collection.text_fields, doc_length)


def join_indexes(path: Path, indexes: Mapping[str, HypencoderIndex]) -> HypencoderIndex:
    """Open an index with the vectors of several indexes, or build it.

    Args:
        path: Directory of the joint index.
        indexes: Indexes by name. The docnos of the joint index start with the name: ``name/docno``.
    """
    if not path.exists():
        vectors = (
            {"docno": f"{name}/{doc['docno']}", "doc_vec": doc["doc_vec"]}
            for name, index in indexes.items()
            for doc in index.get_corpus_iter()
        )
        HypencoderIndexer(path, mode="resume").index(vectors)
    return HypencoderIndex(path)

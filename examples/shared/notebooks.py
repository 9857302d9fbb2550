"""The small collection that the notebooks search, and its index, which is built once."""

from pathlib import Path

import pandas as pd
import pyterrier as pt

from pyterrier_hypencoder import BiEncoder, HypencoderIndex, HypencoderIndexer
from shared import apidocs
from shared.collection import Collection
from shared.docstrings import make_query
from shared.indexes import load_minilm

#: Folder for the index and for trained models. Deleting it is safe.
CACHE = Path(__file__).parents[1] / "notebooks" / "cache"
NUM_DOCS = 1200
NUM_TOPICS = 200
DOC_LENGTH = 128

# Drawing a pipeline would download the list of PyTerrier's documentation pages. Without it, schematics have no links.
pt.documentation._cached_objects_inv = {}


def build_small_collection(num_topics: int = NUM_TOPICS, num_docs: int = NUM_DOCS) -> Collection:
    """Build a part of the quickstart's collection: some topics, their relevant documents, and other documents.

    Args:
        num_topics: Number of topics.
        num_docs: Number of documents.
    """
    whole = apidocs.build_collection()
    topics = whole.topics.head(num_topics)
    qrels = whole.qrels[whole.qrels["qid"].isin(topics["qid"])].reset_index(drop=True)
    docs = list(whole.docs())
    relevant = set(qrels["docno"])
    others = [doc["docno"] for doc in docs if doc["docno"] not in relevant]
    n_others = num_docs - len(relevant)
    kept = relevant | set(others[:: max(1, len(others) // n_others)][:n_others])
    records = [doc for doc in docs if doc["docno"] in kept]
    return Collection("a part of the documentation of installed libraries", lambda: iter(records), topics, qrels)


def load_encoder() -> BiEncoder:
    """Load all-MiniLM-L6-v2 from its wheel."""
    return load_minilm(DOC_LENGTH)


def open_small_index(collection: Collection) -> HypencoderIndex:
    """Open the index of the small collection in :data:`CACHE`, or build it with MiniLM in about a minute.

    An index of other documents, for example after an update of a library, is replaced.
    """
    path = CACHE / "small.hyp"
    if path.exists() and list(HypencoderIndex(path).docnos) == [doc["docno"] for doc in collection.docs()]:
        return HypencoderIndex(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return HypencoderIndexer(path, load_encoder(), mode="overwrite").index(collection.docs())


def show_texts(collection: Collection, docnos: list[str], width: int = 90) -> pd.DataFrame:
    """Return a frame with the first characters of some documents."""
    texts = {doc["docno"]: " ".join(doc["text"].split()) for doc in collection.docs()}
    return pd.DataFrame({"docno": docnos, "text": [texts[docno][:width] for docno in docnos]})


def build_training_topics(collection: Collection) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Build topics from the summaries of documents that no topic of the collection asks for.

    They suit a lesson only. A model for other purposes should not be trained on a test collection.

    Returns:
        Topics (qid and query) and judgements (qid, docno and label).
    """
    judged, tested = set(collection.qrels["docno"]), set(collection.topics["query"].str.lower())
    summaries = apidocs.read_docs()
    rows = []
    for docno in (doc["docno"] for doc in collection.docs() if doc["docno"] not in judged):
        query = make_query(summaries[docno][0])
        if len(query.split()) in apidocs.TOPIC_WORDS and query.lower() not in tested:
            rows.append({"qid": f"t{len(rows)}", "query": query, "docno": docno, "label": 1})
    frame = pd.DataFrame(rows)
    return frame[["qid", "query"]], frame[["qid", "docno", "label"]]

"""Mine training rows with PyTerrier pipelines: negatives from any retriever, teacher scores from any re-ranker.

Example:
    >>> import json, tempfile
    >>> import pyterrier as pt
    >>> docs = [{"docno": "d1", "text": "Mars"}, {"docno": "d2", "text": "Venus"}]
    >>> topics = pd.DataFrame({"qid": ["q1"], "query": ["red planet"]})
    >>> qrels = pd.DataFrame({"qid": ["q1"], "docno": ["d1"], "label": [1]})
    >>> retriever = pt.Transformer.from_df(pd.DataFrame({"qid": ["q1"] * 2, "docno": ["d1", "d2"], "rank": [0, 1]}))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     row = json.loads(mine(topics, qrels, docs, retriever, path=folder + "/rows.jsonl").read_text())
    >>> row["query"]
    {'id': 'q1', 'content': 'red planet'}
    >>> [(item["content"], item["type"]) for item in row["items"]]
    [('Mars', 'positive'), ('Venus', 'negative')]
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyterrier as pt
from more_itertools import chunked

from ..encoders.columns import TextField, join_text, list_text_fields, read_docnos, read_queries
from ..options import check_non_negative, check_number, check_positive
from .row_files import check_row_file, check_suffix, write_row_file

_LOG = logging.getLogger(__name__)
_TOPICS_PER_BATCH = 256
"""Number of topics that a pipeline gets at once, which bounds the frames in memory."""


class MinedTopic(NamedTuple):
    """A topic with the docnos of its relevant documents and of its negatives."""

    qid: str
    query: str
    positives: list[str]
    negatives: list[str]


def mine(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    docs: Any,
    retriever: Any,
    *,
    path: str | Path,
    negatives_per_query: int = 100,
    teacher: Any = None,
    text_field: TextField = "text",
    max_rank: int | None = None,
    min_label: int = 1,
    seed: int = 0,
    verbose: bool = False,
) -> Path:
    """Write training rows made from topics, judgements and documents, or reuse the file if it exists.

    A row holds the relevant documents of a topic by label, then its negatives by rank. Their types are ``positive`` and
    ``negative``, so read the file with ``RowSampler(positive="type")``. Topics without a relevant document in ``docs`` are
    left out. ``PATH.json`` describes the inputs. It only holds the number of documents, unless they are a dataset.

    Args:
        topics: Frame with qid, query and what the retriever needs.
        qrels: Frame with qid, docno and label.
        docs: Dictionaries with docno and text, a frame, or a PyTerrier dataset. Only the needed texts stay in memory.
        retriever: Pipeline that finds negatives. Its results that are not judged relevant are used.
        path: File to write, ``.jsonl`` or ``.jsonl.gz``.
        negatives_per_query: Maximum number of negatives per topic.
        teacher: Pipeline that scores a frame with qid, query, docno and text, and keeps all rows. None writes no scores.
        text_field: Field with the text of a document, or a list of fields.
        max_rank: Number of top documents from which the negatives are drawn at random. None takes the first ones.
        min_label: Lowest label of relevant documents.
        seed: Seed of the random draw.
        verbose: If True, show progress.

    Returns:
        The path, for :class:`~pyterrier_hypencoder.training.training_rows.TrainingRows`.

    Raises:
        FileExistsError: If the file exists and was made from other inputs, or is incomplete.
        ValueError: If no topic can be used, or an input is malformed. Nothing is written then.
    """
    path, fields = Path(path).expanduser(), list_text_fields(text_field)
    _check_numbers(negatives_per_query, max_rank, min_label, seed)
    check_suffix(path)
    topics, qrels = _check_frames(topics, qrels)
    options = {"negatives_per_query": int(negatives_per_query), "max_rank": max_rank and int(max_rank), "seed": int(seed)}
    others = {"min_label": min_label, "fields": fields}
    made_from = _describe_inputs(topics, qrels, docs, retriever, teacher) | options | others
    if path.exists():
        check_row_file(path, made_from)
        _LOG.info("%s exists and is reused.", path)
        return path
    relevant = _list_relevant(qrels, min_label)
    negatives = _find_negatives(topics[topics["qid"].isin(relevant)], relevant, retriever, options, verbose)
    mined, texts = _join_topics(topics, relevant, negatives, docs, fields)
    _check_mined(path, mined, len(topics), negatives_per_query, min_label)
    rows = _make_rows(mined, texts, teacher)
    write_row_file(path, pt.tqdm(rows, desc="rows", total=len(mined), disable=not verbose), made_from)
    return path


def _check_numbers(negatives_per_query: Any, max_rank: Any, min_label: Any, seed: Any) -> None:
    check_positive("negatives_per_query", negatives_per_query)
    check_positive("max_rank", 1 if max_rank is None else max_rank)
    check_number("min_label", min_label)
    check_non_negative("seed", seed)


def _check_frames(topics: pd.DataFrame, qrels: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check topics and judgements, and return them with ids as strings."""
    check_frame("topics", topics, "qid", "query")
    check_frame("qrels", qrels, "qid", "docno", "label")
    if not pd.api.types.is_numeric_dtype(qrels["label"]):
        raise ValueError(
            f"label must be a column of numbers in qrels, got {qrels['label'].dtype}. Convert it with .astype(int)."
        )
    read_queries(topics)
    topics = topics.assign(qid=topics["qid"].astype(str))
    if topics["qid"].duplicated().any():
        twice = topics["qid"][topics["qid"].duplicated()].iloc[0]
        raise ValueError(f"topics must have every qid once, got {twice!r} several times. Drop the duplicates.")
    return topics, qrels[["qid", "docno", "label"]].astype({"qid": str, "docno": str})


def check_frame(name: str, frame: Any, *columns: str) -> None:
    """Check that a value is a frame with some columns.

    Args:
        name: Name of the frame, for the error message.
        frame: The value.
        *columns: Names of the columns.

    Raises:
        ValueError: If it is something else, or a column is missing.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{name} must be a data frame with the columns {', '.join(columns)}, got {frame!r:.80}.")
    if not set(columns) <= set(frame.columns):
        raise ValueError(f"{name} must have the columns {', '.join(columns)}, got {', '.join(map(str, frame.columns))}.")


def _list_relevant(qrels: pd.DataFrame, min_label: int) -> dict[str, list[str]]:
    """Return the docnos of each topic's relevant documents, the highest label first."""
    judged = qrels[qrels["label"] >= min_label].sort_values("label", ascending=False, kind="stable")
    return {str(qid): list(dict.fromkeys(docnos)) for qid, docnos in judged.groupby("qid")["docno"]}


def _find_negatives(
    topics: pd.DataFrame, relevant: Mapping[str, list[str]], retriever: Any, options: Mapping[str, Any], verbose: bool
) -> dict[str, list[str]]:
    """Return the docnos of each topic's negatives, by rank."""
    found: dict[str, list[str]] = {}
    progress = pt.tqdm(total=len(topics), desc="negatives", unit="topic", disable=not verbose)
    for start in range(0, len(topics), _TOPICS_PER_BATCH):
        batch = topics.iloc[start : start + _TOPICS_PER_BATCH]
        results = retriever.transform(batch)
        by = "rank" if "rank" in results.columns else "score"
        check_frame("the results of retriever", results, "qid", "docno", by)
        results = results.sort_values(by, ascending=by == "rank", kind="stable")
        results = results.assign(qid=results["qid"].astype(str), docno=read_docnos(results))
        for qid, docnos in results.groupby("qid")["docno"]:
            found[str(qid)] = _pick_negatives(str(qid), list(docnos), set(relevant.get(str(qid), ())), **options)
        progress.update(len(batch))
    progress.close()
    return found


def _pick_negatives(
    qid: str, ranked: list[str], relevant: set[str], *, negatives_per_query: int, max_rank: int | None, seed: int
) -> list[str]:
    """Return the negatives of one topic, by rank."""
    candidates = [docno for docno in dict.fromkeys(ranked[:max_rank]) if docno not in relevant]
    if max_rank is not None and len(candidates) > negatives_per_query:
        drawn = random.Random(f"{seed}/{qid}").sample(range(len(candidates)), negatives_per_query)
        candidates = [candidates[i] for i in sorted(drawn)]
    return candidates[:negatives_per_query]


def _join_topics(
    topics: pd.DataFrame,
    relevant: Mapping[str, list[str]],
    negatives: Mapping[str, list[str]],
    docs: Any,
    fields: list[str],
) -> tuple[list[MinedTopic], dict[str, str]]:
    """Return the topics that have a relevant document in ``docs``, and the needed texts by docno."""
    topics = topics[topics["qid"].isin(relevant)]
    texts = _read_texts(docs, fields, {d for qid in topics["qid"] for d in (*relevant[qid], *negatives.get(qid, ()))})
    mined = []
    for qid, query in zip(topics["qid"], topics["query"], strict=True):
        lists = ([d for d in docnos if d in texts] for docnos in (relevant[qid], negatives.get(qid, [])))
        topic = MinedTopic(qid, query, *lists)
        if topic.positives:
            mined.append(topic)
    return mined, texts


def _read_texts(docs: Any, fields: list[str], needed: set[str]) -> dict[str, str]:
    """Return the texts of the needed documents by docno, in one pass over all documents."""
    if hasattr(docs, "get_corpus_iter"):
        docs = docs.get_corpus_iter(verbose=False)
    documents = docs.to_dict("records") if isinstance(docs, pd.DataFrame) else docs
    texts = {}
    for doc in documents if isinstance(documents, Iterable) else [documents]:
        if not isinstance(doc, Mapping):
            raise ValueError(f"docs must be dictionaries with docno and text, a frame or a dataset, got {doc!r:.80}.")
        if doc.get("docno") in needed:
            texts[doc["docno"]] = join_text(doc, fields)
    return texts


def _check_mined(path: Path, mined: Sequence[MinedTopic], n_topics: int, negatives_per_query: int, min_label: int) -> None:
    """Log how many topics are used.

    Raises:
        ValueError: If there are none.
    """
    n_few = sum(len(topic.negatives) < negatives_per_query for topic in mined)
    _LOG.log(
        logging.WARNING if len(mined) < n_topics else logging.INFO,
        "%s: rows for %d of %d topics (%d without a relevant document in docs, %d with fewer than %d negatives).",
        *(path, len(mined), n_topics, n_topics - len(mined), n_few, negatives_per_query),
    )
    if not mined:
        raise ValueError(
            f"None of {n_topics} topics has a relevant document (label >= {min_label}) in docs. Check that the qids of topics "
            "and qrels match, and the docnos of qrels and docs."
        )


def _make_rows(mined: Sequence[MinedTopic], texts: Mapping[str, str], teacher: Any) -> Iterator[dict[str, Any]]:
    """Yield one training row per topic."""
    for topics in chunked(mined, _TOPICS_PER_BATCH):
        scores = {} if teacher is None else _score_items(topics, texts, teacher)
        for topic in topics:
            row: dict[str, Any] = {"query": {"id": topic.qid, "content": topic.query}, "items": []}
            for kind, docnos in (("positive", topic.positives), ("negative", topic.negatives)):
                for docno in docnos:
                    score = {"score": scores[topic.qid, docno]} if scores else {}
                    row["items"].append({"id": docno, "content": texts[docno], "type": kind, **score})
            yield row


def _score_items(topics: Sequence[MinedTopic], texts: Mapping[str, str], teacher: Any) -> dict[tuple[str, str], float]:
    """Return the teacher's score of every item by qid and docno."""
    pairs = [(t.qid, t.query, docno, texts[docno]) for t in topics for docno in (*t.positives, *t.negatives)]
    scored = teacher.transform(pd.DataFrame(pairs, columns=["qid", "query", "docno", "text"]))
    check_frame("the results of teacher", scored, "qid", "docno", "score")
    scores = {(row.qid, row.docno): float(row.score) for row in scored.itertuples()}
    for qid, _, docno, _ in pairs:
        if not math.isfinite(scores.get((qid, docno), math.nan)):
            raise ValueError(
                f"teacher must give every document a finite score, got {scores.get((qid, docno))} for query {qid!r}, document "
                f"{docno!r}. It must keep all rows."
            )
    return scores


def _describe_inputs(
    topics: pd.DataFrame, qrels: pd.DataFrame, docs: Any, retriever: Any, teacher: Any
) -> dict[str, str | None]:
    """Return short descriptions of the inputs, which tell whether they have changed."""
    return {
        "topics": f"{len(topics)} rows, {digest_frame(topics[['qid', 'query']])}",
        "qrels": f"{len(qrels)} rows, {digest_frame(qrels)}",
        "docs": _describe(docs),
        "retriever": _describe(retriever),
        "teacher": None if teacher is None else _describe(teacher),
    }


def _describe(value: Any) -> str:
    """Return a description of a pipeline or of documents, which is the same in every process."""
    is_data = isinstance(value, pd.DataFrame) or not (hasattr(value, "transform") or hasattr(value, "get_corpus_iter"))
    if is_data:
        return type(value).__name__ + (f" of {len(value)}" if hasattr(value, "__len__") else "")
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def digest_frame(frame: pd.DataFrame) -> str:
    """Return a digest of the contents of a frame."""
    return hashlib.blake2b(frame.to_csv(index=False).encode(), digest_size=8).hexdigest()

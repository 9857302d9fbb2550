"""Training data from PyTerrier: negatives mined by any retriever, teacher scores from any re-ranker, written once."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from more_itertools import chunked

from ..encoders.columns import TextField, join_text, list_text_fields, read_docnos, read_queries
from ..options import check_positive

_LOG = logging.getLogger(__name__)
_SUFFIXES = (".jsonl", ".jsonl.gz")
_TOPICS = 256
"""Topics that pipelines are given together; bounds the frames in memory."""


def mine(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    docs: Any,
    retriever: Any,
    *,
    path: str | Path,
    negatives: int = 100,
    teacher: Any = None,
    text_field: TextField = "text",
    max_rank: int | None = None,
    min_label: int = 1,
    seed: int = 0,
) -> Path:
    """Writes training rows made of topics, judgements and documents, once; what is there already is used again.

    A row has the topic's relevant documents first, the highest label foremost, then its negatives by rank; types are
    ``positive`` and ``negative``: read it with ``RowSampler(positive="type")``, which takes no relevant document for a
    negative. Topics without a relevant document in ``docs`` are left out. Beside the file stands ``PATH.json``, which says
    what it was made from; of documents that are no dataset it knows the number only.

    Args:
        topics: qid, query, and what the retriever needs.
        qrels: qid, docno, label.
        docs: documents with docno and text: an iterable of dictionaries, a frame, or a dataset of PyTerrier. Read once, and
            only texts that are needed are kept.
        retriever: pipeline that finds negatives: what it returns and is not judged relevant.
        path: the file to write, ``.jsonl`` or ``.jsonl.gz``.
        negatives: negatives of a topic, at most.
        teacher: pipeline that gives scores to a frame with qid, query, docno and text; it must keep all rows.
        text_field: the field with a document's text, or several.
        max_rank: take negatives at random from this many documents of the retriever; None takes the first ones.
        min_label: the lowest label of relevant documents.
        seed: of that choice.

    Returns:
        The path, for :class:`TrainingRows`.

    Raises:
        FileExistsError: where the file there was made from something else, or is incomplete.
        ValueError: where no topic can be used, or something given is not what it should be. Nothing is written then.
    """
    path, fields = Path(path), list_text_fields(text_field)
    check_positive("negatives", negatives)
    check_positive("max_rank", 1 if max_rank is None else max_rank)
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(f"path: expected a name that ends with {' or '.join(_SUFFIXES)}, found {path.name!r}")
    topics, qrels = _checked_frames(topics, qrels)
    made_from = {
        "topics": f"{len(topics)} rows, {digest(topics[['qid', 'query']])}",
        "qrels": f"{len(qrels)} rows, {digest(qrels)}",
        **{"docs": _name(docs), "retriever": _name(retriever), "teacher": None if teacher is None else _name(teacher)},
        **{"negatives": int(negatives), "max_rank": None if max_rank is None else int(max_rank), "min_label": min_label},
        **{"fields": fields, "seed": seed},
    }
    if path.exists():
        _check_made_from(path, made_from)
        _LOG.info("%s: used again", path)
        return path
    items, texts = _collect(topics, _relevant(qrels, min_label), docs, fields, retriever, (negatives, max_rank, seed))
    few = sum(len(lists[1]) < negatives for lists in items.values())
    _LOG.log(
        logging.WARNING if len(items) < len(topics) else logging.INFO,
        "%s: rows for %d of %d topics; left out %d without a relevant document in docs; %d have fewer than %d negatives",
        *(path, len(items), len(topics), len(topics) - len(items), few, negatives),
    )
    if not items:
        raise ValueError(
            f"expected topics with a relevant document (label >= {min_label}) in docs, found none of {len(topics)}; do the "
            "qids of topics and qrels, and the docnos of qrels and docs, fit together?"
        )
    _write(path, _rows(items, texts, teacher), made_from)
    return path


def _collect(
    topics: pd.DataFrame,
    relevant: dict[str, list[str]],
    docs: Any,
    fields: list[str],
    retriever: Any,
    how: tuple[int, int | None, int],
) -> tuple[dict[tuple[str, str], tuple[list[str], list[str]]], dict[str, str]]:
    """Positive and negative docnos of each usable topic (qid, query), and the documents' texts."""
    topics = topics[topics["qid"].isin(relevant)]
    found: dict[str, list[str]] = {}
    for start in range(0, len(topics), _TOPICS):
        found |= _negatives(retriever.transform(topics.iloc[start : start + _TOPICS]), relevant, *how)
    texts = _texts(docs, fields, {d for qid in topics["qid"] for d in (*relevant[qid], *found.get(qid, ()))})
    items = {}
    for qid, query in zip(topics["qid"], topics["query"], strict=True):
        positives, negatives = ([d for d in docnos if d in texts] for docnos in (relevant[qid], found.get(qid, [])))
        if positives:
            items[qid, query] = (positives, negatives)
    return items, texts


def _checked_frames(topics: pd.DataFrame, qrels: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Topics and judgements (qid, docno, label) whose ids are strings."""
    _check_columns("topics", topics, "qid", "query")
    _check_columns("qrels", qrels, "qid", "docno", "label")
    read_queries(topics)
    topics = topics.assign(qid=topics["qid"].astype(str))
    if topics["qid"].duplicated().any():
        twice = topics["qid"][topics["qid"].duplicated()].iloc[0]
        raise ValueError(f"topics: expected every qid once, found {twice!r} more often; drop duplicates")
    return topics, qrels[["qid", "docno", "label"]].astype({"qid": str, "docno": str})


def _check_columns(name: str, frame: pd.DataFrame, *columns: str) -> None:
    if not set(columns) <= set(frame.columns):
        raise ValueError(f"{name}: expected the columns {list(columns)}, found {list(frame.columns)}")


def _relevant(qrels: pd.DataFrame, min_label: int) -> dict[str, list[str]]:
    """Docnos of each topic's relevant documents, the highest label first."""
    judged = qrels[qrels["label"] >= min_label].sort_values("label", ascending=False, kind="stable")
    return {str(qid): list(dict.fromkeys(docnos)) for qid, docnos in judged.groupby("qid")["docno"]}


def _negatives(
    results: pd.DataFrame, relevant: dict[str, list[str]], negatives: int, max_rank: int | None, seed: int
) -> dict[str, list[str]]:
    """Docnos of each topic's negatives, by rank."""
    by = "rank" if "rank" in results.columns else "score"
    _check_columns("retriever", results, "qid", "docno", by)
    results = results.sort_values(by, ascending=by == "rank", kind="stable")
    results = results.assign(qid=results["qid"].astype(str), docno=read_docnos(results))
    found = {}
    for qid, docnos in results.groupby("qid")["docno"]:
        judged = set(relevant.get(str(qid), ()))
        candidates = [docno for docno in dict.fromkeys(docnos.iloc[:max_rank]) if docno not in judged]
        if max_rank is not None and len(candidates) > negatives:
            chosen = random.Random(f"{seed}/{qid}").sample(range(len(candidates)), negatives)
            candidates = [candidates[i] for i in sorted(chosen)]
        found[str(qid)] = candidates[:negatives]
    return found


def _texts(docs: Any, fields: list[str], needed: set[str]) -> dict[str, str]:
    """The texts of the documents that are needed, of one reading."""
    if hasattr(docs, "get_corpus_iter"):
        docs = docs.get_corpus_iter(verbose=False)
    documents = docs.to_dict("records") if isinstance(docs, pd.DataFrame) else docs
    return {doc["docno"]: join_text(doc, fields) for doc in documents if doc.get("docno") in needed}


def _rows(
    items: dict[tuple[str, str], tuple[list[str], list[str]]], texts: dict[str, str], teacher: Any
) -> Iterator[dict[str, Any]]:
    for batch in chunked(items.items(), _TOPICS):
        scores: dict[tuple[str, str], float] = {}
        if teacher is not None:
            pairs = [(*topic, docno, texts[docno]) for topic, lists in batch for docno in (*lists[0], *lists[1])]
            scored = teacher.transform(pd.DataFrame(pairs, columns=["qid", "query", "docno", "text"]))
            _check_columns("teacher", scored, "qid", "docno", "score")
            scores = {(row.qid, row.docno): float(row.score) for row in scored.itertuples()}
            for qid, _, docno, _ in pairs:
                if not math.isfinite(scores.get((qid, docno), math.nan)):
                    raise ValueError(
                        f"teacher: expected a finite score for every document, found {scores.get((qid, docno))} for query "
                        f"{qid!r}, document {docno!r}; the pipeline must score all that it is given and cut nothing"
                    )
        for (qid, query), lists in batch:
            row: dict[str, Any] = {"query": {"id": qid, "content": query}, "items": []}
            for kind, docnos in zip(("positive", "negative"), lists, strict=True):
                for docno in docnos:
                    score = {"score": scores[qid, docno]} if scores else {}
                    row["items"].append({"id": docno, "content": texts[docno], "type": kind, **score})
            yield row


def _write(path: Path, rows: Iterable[dict[str, Any]], made_from: dict[str, Any]) -> None:
    """Writes rows and facts; the rows appear last, at once and whole, so that a killed run leaves nothing that is used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, facts_file = path.with_name(f".{path.name}.{os.getpid()}.tmp"), _facts_file(path)
    number, items = 0, 0
    try:
        with open(temporary, "wb") as raw:
            # Without a name and time in its header, the file is the same whenever it is made.
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.name.endswith(".gz") else raw
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                number, items = number + 1, items + len(row["items"])
            if file is not raw:
                file.close()
            raw.flush()
            os.fsync(raw.fileno())
        facts = {"made_from": made_from, "rows": number, "items": items, "bytes": temporary.stat().st_size}
        facts_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_made_from(path: Path, made_from: dict[str, Any]) -> None:
    """Checks that the file there is complete and was made from the same."""
    try:
        facts = json.loads(_facts_file(path).read_text(encoding="utf-8"))
        stored, size = facts["made_from"], facts["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise FileExistsError(
            f"expected the facts of {path} in {_facts_file(path)}, found none that can be read; move the file away, or give "
            "another path"
        ) from err
    differing = [f"{key}={stored.get(key)!r} (now {value!r})" for key, value in made_from.items() if stored.get(key) != value]
    if path.stat().st_size != size:
        differing.append(f"a size of {path.stat().st_size} bytes (once {size})")
    if differing:
        raise FileExistsError(
            f"expected {path} to be made from what is given now, found {', '.join(differing)}; delete it to mine again, or "
            "give another path"
        )


def _facts_file(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _name(given: Any) -> str:
    """What facts call pipelines and documents, the same in every process."""
    is_data = isinstance(given, pd.DataFrame) or not (hasattr(given, "transform") or hasattr(given, "get_corpus_iter"))
    if is_data:
        return type(given).__name__ + (f" of {len(given)}" if hasattr(given, "__len__") else "")
    return re.sub(r" at 0x[0-9a-f]+", "", repr(given))


def digest(frame: pd.DataFrame) -> str:
    """What tells a frame from others."""
    return hashlib.blake2b(frame.to_csv(index=False).encode(), digest_size=8).hexdigest()

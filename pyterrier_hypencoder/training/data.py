"""Training data: rows of a query and its items, read from JSONL files and sampled, or mined with PyTerrier pipelines.

A file has one row a line, in the authors' format (jfkback/hypencoder-paper, ``train/data_collator.py``)::

    {"query": {"id", "content", "tokenized_content"},
     "items": [{"id", "content", "tokenized_content", "score", "type"}, ...]}

Texts are given by ``content``, or by ``tokenized_content``, token ids with the special ones; all else may be absent.
B rows make a batch; each has M items, the positive first; T tokens, D dimensions.
"""

from __future__ import annotations

import glob
import gzip
import json
import logging
import math
import os
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from more_itertools import chunked

from ..options import check_choice, check_positive

_LOG = logging.getLogger(__name__)
_SUFFIXES = (".jsonl", ".jsonl.gz")

_FORMAT = '{"query": {...}, "items": [{...}, ...]} as JSON'
_ADVICE = "leave such rows out with on_too_few_items='skip'"

Paths = str | Path | Sequence[str | Path]
Content = str | list[int]


class TooFewItemsError(ValueError):
    """A row that has no positive item, or fewer items than are sampled."""


class SampledRow(TypedDict):
    """A query with M sampled items, the positive first; None stands for what the row does not have."""

    query_id: str | None
    query: Content
    item_ids: list[str | None]
    items: list[Content] | None
    scores: list[float] | None


@dataclass(frozen=True)
class RowSampler:
    """Takes one positive and some other items of a row, at random and without replacement.

    Args:
        positive: which items may be the positive: ``first`` (the first item, as released), ``type`` (those of
            ``positive_type``), ``score_above`` (those whose score is above ``threshold``) or ``top`` (the teacher's best, as
            in the paper). Of several one is taken at random, and none of the others is a negative.
        negatives: other items, M - 1; 8 in the paper, 7 in the released configuration.
        positive_type: the type of positive items.
        threshold: what scores of positive items exceed.
        require_scores: whether rows must have the teacher's scores, as distillation needs them.
        content: ``text``, ``tokens``, or ``auto``: the text where there is one, as tokens fit one tokenizer only.
        item_texts: whether the items' texts are wanted; not with documents that are given as vectors.
    """

    positive: str = "first"
    negatives: int = 8
    positive_type: str = "positive"
    threshold: float = 0.0
    require_scores: bool = False
    content: str = "auto"
    item_texts: bool = True

    def __post_init__(self) -> None:
        check_choice("positive", self.positive, ("first", "type", "score_above", "top"))
        check_choice("content", self.content, ("auto", "text", "tokens"))
        _check_whole("negatives", self.negatives)

    def __call__(self, row: Mapping[str, Any] | bytes, rng: random.Random, where: str = "row") -> SampledRow:
        """Samples a row.

        Args:
            row: a row of a file, as a line or parsed.
            rng: where chance comes from.
            where: what errors call the row.

        Raises:
            TooFewItemsError: where no item is positive, or too few are not.
            ValueError: where the row has not what it should have.
        """
        query, items = _parts(row, where)
        where = f"{where}, query {query.get('id')!r}"
        scores = [_score(item, where) for item in items]
        if None in scores and (self.require_scores or self.positive in ("score_above", "top")):
            reason = "distillation" if self.require_scores else f"positive={self.positive!r}"
            raise ValueError(
                f"{where}: expected a teacher's score in every item for {reason}, found none in item {scores.index(None)}; "
                "add scores, or choose a loss and a rule for positives that need none"
            )
        picked = self._pick(items, scores, rng, where)
        taken = [scores[i] for i in picked]
        return SampledRow(
            query_id=_id(query),
            query=self._content(query, where, "the query"),
            item_ids=[_id(items[i]) for i in picked],
            items=[self._content(items[i], where, f"item {i}") for i in picked] if self.item_texts else None,
            scores=None if None in taken else taken,  # type: ignore[typeddict-item]
        )

    def _pick(self, items: list[dict[str, Any]], scores: list[Any], rng: random.Random, where: str) -> list[int]:
        every = range(len(items))
        positives = {
            "first": lambda: list(every[:1]),
            "type": lambda: [i for i in every if items[i].get("type") == self.positive_type],
            "score_above": lambda: [i for i in every if scores[i] > self.threshold],
            "top": lambda: sorted(every, key=scores.__getitem__, reverse=True)[:1],
        }[self.positive]()
        if not positives:
            rule = {"type": f" of type {self.positive_type!r}", "score_above": f" of a score above {self.threshold}"}
            expected = f"expected an item{rule.get(self.positive, '')} as the positive"
            raise TooFewItemsError(f"{where}: {expected}, found none among {len(items)}; {_ADVICE}")
        others, seen = [], {_id(items[i]) for i in positives}
        for i in sorted(set(every) - set(positives)):
            if (name := _id(items[i])) is None or name not in seen:  # a document may be listed twice
                others.append(i)
                seen.add(name)
        if len(others) < self.negatives:
            raise TooFewItemsError(
                f"{where}: expected at least {self.negatives} items besides the positive, found {len(others)}; lower "
                f"negatives={self.negatives}, or {_ADVICE}"
            )
        return [rng.choice(positives), *rng.sample(others, self.negatives)]

    def _content(self, record: Mapping[str, Any], where: str, what: str) -> Content:
        text, tokens = record.get("content"), record.get("tokenized_content")
        if self.content != "tokens" and isinstance(text, str):
            return text
        whole = isinstance(tokens, list) and bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)
        if self.content != "text" and whole:
            return tokens  # type: ignore[return-value]
        expected = {"auto": "content or tokenized_content", "text": "content", "tokens": "tokenized_content"}[self.content]
        raise ValueError(
            f"{where}: expected {what} to have {expected}, a string or a list of token ids; found content={text!r:.80} and "
            f"tokenized_content={tokens!r:.80}; write one of them into the file"
        )


class TrainingRows(torch.utils.data.IterableDataset[SampledRow]):
    """Sampled rows of JSONL files, streamed through Hugging Face ``datasets``: memory does not grow with the files.

    Lines are shuffled, split over processes and skipped as they are, whole passes without reading them; only a process's own
    are parsed (all of them, from the first pass on, with ``on_too_few_items="skip"``, so that processes still get equally
    many). What is sampled from a row depends on seed, epoch,
    file (its place in the list) and row number alone: neither on the process that reads it nor on the number of workers.
    Attributes may be set until iteration begins. In a ``DataLoader`` each worker reads files of its own, so that more
    workers than files stay idle, and only one worker (or none) keeps the order of rows.

    Args:
        paths: files (``.jsonl``, ``.jsonl.gz``), directories or patterns with ``*``, or a list of them.
        sampler: what is taken from a row.
        shuffle_buffer: lines among which the next one is chosen at random; 0 keeps the files' order.
        seed: of shuffling and sampling.
        rank: this process; it takes every ``world_size``-th row.
        world_size: processes. All get equally many: the last rows, fewer than the processes, are left out.
        epochs: passes over the files; None goes on for ever.
        skip: rows to leave out of those that this process would get: where an interrupted run had come to.
        on_too_few_items: ``error``, or ``skip`` to leave out and count rows without positive or with too few items.

    Raises:
        FileNotFoundError: where a path leads to no file.
        ValueError: for wrong options; while iterating, for bad rows (naming file, row and query) and for no rows at all.
    """

    def __init__(
        self,
        paths: Paths,
        sampler: RowSampler,
        *,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = 1,
        skip: int = 0,
        on_too_few_items: str = "error",
    ) -> None:
        check_positive("world_size", world_size)
        for name, value in {"shuffle_buffer": shuffle_buffer, "seed": seed, "rank": rank, "skip": skip}.items():
            _check_whole(name, value)
        if epochs is not None:
            check_positive("epochs", epochs)
        if rank >= world_size:
            raise ValueError(f"rank: expected a number below world_size={world_size}, found {rank}")
        check_choice("on_too_few_items", on_too_few_items, ("error", "skip"))
        self.files = list_files(paths)
        self.sampler = sampler
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epochs = epochs
        self.skip = skip
        self.on_too_few_items = on_too_few_items
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next iteration's first pass, which chance depends on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampledRow]:
        workers = torch.utils.data.get_worker_info()
        if self.skip and workers is not None and workers.num_workers > 1:
            raise ValueError(f"skip={self.skip}: expected at most one worker to resume, found {workers.num_workers}")
        check = workers is None or workers.num_workers == 1
        if self.on_too_few_items == "skip":  # which lines give rows is known only once they are parsed
            return islice(self._own(self._samples(self._lines(self.epoch, check))), self.skip, None)
        lines = sum(1 for _ in _read_lines(list(enumerate(self.files)))) if self.skip else 0
        done, left = divmod(self.skip * self.world_size, max(1, lines))
        return self._samples(self._own(islice(self._lines(self.epoch + done, check), left, None)))

    def _own(self, stream: Iterator[Any]) -> Iterator[Any]:
        """This process's part: one of each turn that goes round all processes."""
        if self.world_size == 1:
            return stream
        return (turn[self.rank] for turn in chunked(stream, self.world_size) if len(turn) == self.world_size)

    def _lines(self, first: int, check: bool) -> Iterator[dict[str, Any]]:
        """The lines of all passes from one on: epoch, file, row and line; ``check`` makes a pass without any an error."""
        from datasets import IterableDataset  # type: ignore[import-untyped]

        stream = IterableDataset.from_generator(_read_lines, gen_kwargs={"files": list(enumerate(self.files))})
        if self.shuffle_buffer:
            stream = stream.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        for epoch in count(first) if self.epochs is None else range(first, self.epoch + self.epochs):
            if self.shuffle_buffer:  # otherwise it would only change the order of files
                stream.set_epoch(epoch)
            empty = True
            for line in stream:
                empty = False
                yield {"epoch": epoch, **line}
            if empty:
                if check:
                    raise ValueError(f"expected at least one row, found none in {self.files}; are the files complete?")
                return  # a worker without a file

    def _samples(self, lines: Iterable[dict[str, Any]]) -> Iterator[SampledRow]:
        kept, short, epoch = 0, 0, None
        for line in lines:
            if epoch is None:
                epoch = line["epoch"]
            if line["epoch"] != epoch:
                self._report(kept, short)
                kept, short, epoch = 0, 0, line["epoch"]
            where = f"{self.files[line['file']]}, row {line['row']}"
            # A string seeds through SHA-512, so that Python's hash seed plays no part.
            rng = random.Random(f"{self.seed}/{epoch}/{line['file']}/{line['row']}")
            try:
                sampled = self.sampler(line["line"], rng, where)
            except TooFewItemsError as err:
                if self.on_too_few_items == "error":
                    raise
                short += 1
                _LOG.debug("left out: %s", err)
                continue
            kept += 1
            yield sampled
        self._report(kept, short)

    def _report(self, kept: int, short: int) -> None:
        """Says at the end of a pass how many rows were left out.

        Raises:
            ValueError: where it was all of them.
        """
        if short and not kept:
            raise ValueError(
                f"expected rows with a positive and {self.sampler.negatives} other items, found none among {short} in "
                f"{self.files}; look at positive={self.sampler.positive!r} and negatives={self.sampler.negatives}"
            )
        if short:
            _LOG.warning("left out %d of %d rows, without positive or with too few items", short, kept + short)


def list_files(paths: Paths) -> list[str]:
    """The JSONL files that paths, directories and patterns name, each one's sorted.

    Raises:
        FileNotFoundError: where one names none.
    """
    files = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        pattern = os.path.join(glob.escape(str(path)), "*") if os.path.isdir(path) else str(path)
        found = [name for name in sorted(glob.glob(pattern, recursive=True)) if name.endswith(_SUFFIXES)]
        found = [str(path)] if os.path.isfile(path) else found
        if not found:
            raise FileNotFoundError(f"expected training data in {str(path)!r}, found no {' or '.join(_SUFFIXES)} file there")
        files += found
    if not files:
        raise FileNotFoundError("expected files with training data, found none; give at least one path")
    return files


def _read_lines(files: list[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    for number, name in files:
        try:
            with gzip.open(name, "rb") if name.endswith(".gz") else open(name, "rb") as lines:
                for row, line in enumerate(lines, start=1):
                    if line.strip():
                        yield {"file": number, "row": row, "line": line}
        except (gzip.BadGzipFile, EOFError, zlib.error) as err:
            raise ValueError(f"{name}: expected gzipped rows, found a damaged file ({err}); fetch it again") from err


def _parts(row: Any, where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row's query and items; the row may be a line yet to be parsed."""
    try:
        row = json.loads(row) if isinstance(row, bytes) else row
        query, items = row["query"], row["items"]
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{where}: expected {_FORMAT}, found {row!r:.80} ({err!r}); is the file complete?") from err
    if not isinstance(query, dict) or not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{where}: expected {_FORMAT}, found query={query!r:.60}, items={items!r:.60}")
    return query, items


def _id(record: Mapping[str, Any]) -> str | None:
    return None if record.get("id") is None else str(record["id"])


def _score(item: Mapping[str, Any], where: str) -> float | None:
    score = item.get("score")
    if score is None:
        return None
    if type(score) in (int, float) and math.isfinite(score):
        return float(score)
    raise ValueError(f"{where}: expected a finite number as the score of item {item.get('id')!r}, found {score!r}")


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name}: expected a whole number of at least 0, found {value!r}")

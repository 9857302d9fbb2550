"""Sample one positive and several negatives from a training row."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from ..options import check_choice, check_non_negative, check_number

Content = str | list[int]
"""A text, or its token ids with the special tokens."""
_FORMAT = '{"query": {...}, "items": [{...}, ...]} as JSON'
_SKIP_ADVICE = "skip such rows with on_too_few_items='skip'"


class TooFewItemsError(ValueError):
    """Raised for a row without a positive item, or with too few negatives.

    Args:
        message: The message.
        n_negatives: Number of negatives of the row; None if it has no positive.
    """

    def __init__(self, message: str, n_negatives: int | None = None) -> None:
        super().__init__(message)
        self.n_negatives = n_negatives


class SampledRow(TypedDict):
    """A query with M sampled items, the positive first. None stands for values that the row does not have."""

    query_id: str | None
    query: Content
    item_ids: list[str | None]
    items: list[Content] | None
    scores: list[float] | None


@dataclass(frozen=True)
class RowSampler:
    """Sample one positive and several negatives from a training row, without replacement.

    Args:
        positive: Rule for the positive item. If several items match, one is drawn, and none of them becomes a negative.

            - ``first``: the first item of the row, as in the released code.
            - ``auto``: items of the type ``positive_type`` if the items of the row have types, or else the first item.
            - ``type``: items of the type ``positive_type``.
            - ``score_above``: items with a teacher score above ``threshold``.
            - ``top``: the item with the highest teacher score, as in the paper.
        negatives_per_row: Number of negatives to draw, M - 1. The paper uses 8, the released configuration 7.
        positive_type: Type of positive items, for ``positive="type"``.
        threshold: Teacher score that positive items exceed, for ``positive="score_above"``.
        require_scores: If True, every item must have a teacher score. Distillation losses need them.
        content: ``text``, ``tokens`` or ``auto``. ``auto`` prefers texts, because token ids fit only one tokenizer.
        item_texts: If False, leave out the texts of the items. Training on stored document vectors does not need them.

    Raises:
        ValueError: If an option has a wrong value.

    Example:
        >>> import random
        >>> row = {
        ...     "query": {"id": "q1", "content": "red planet"},
        ...     "items": [
        ...         {"id": "d1", "content": "Mars", "type": "positive"},
        ...         {"id": "d2", "content": "Venus", "type": "negative"},
        ...     ],
        ... }
        >>> sampled = RowSampler(positive="type", negatives_per_row=1)(row, random.Random(0))
        >>> sampled["query"], sampled["items"]
        ('red planet', ['Mars', 'Venus'])
    """

    positive: str = "first"
    negatives_per_row: int = 8
    positive_type: str = "positive"
    threshold: float = 0.0
    require_scores: bool = False
    content: str = "auto"
    item_texts: bool = True

    def __post_init__(self) -> None:
        check_choice("positive", self.positive, ("first", "auto", "type", "score_above", "top"))
        check_choice("content", self.content, ("auto", "text", "tokens"))
        check_non_negative("negatives_per_row", self.negatives_per_row)
        check_number("threshold", self.threshold)
        for name, default, rule in (("positive_type", "positive", "type"), ("threshold", 0, "score_above")):
            if getattr(self, name) != default and self.positive not in (rule, "auto" if rule == "type" else rule):
                raise ValueError(
                    f"{name} has no effect with positive={self.positive!r}. Set positive={rule!r}, or leave it out."
                )

    def __call__(self, row: Mapping[str, Any] | bytes, rng: random.Random, source: str = "row") -> SampledRow:
        """Sample the items of a row.

        Args:
            row: Row of a file, parsed or as a line of JSON.
            rng: Source of randomness.
            source: File and line of the row, for error messages.

        Returns:
            The query and 1 + ``negatives_per_row`` items, the positive first.

        Raises:
            TooFewItemsError: If no item can be the positive, or there are too few negatives.
            ValueError: If the row is malformed.
        """
        query, items = _parse_row(row, source)
        source = f"{source}, query {query.get('id')!r}"
        scores = [_read_score(item, source) for item in items]
        if None in scores and (self.require_scores or self.positive in ("score_above", "top")):
            reason = "distillation" if self.require_scores else f"positive={self.positive!r}"
            raise ValueError(
                f"{source}: item {scores.index(None)} has no teacher score, which {reason} needs. Add a score to every item, "
                "or pass a loss that needs none, such as losses=['listwise_ce']."
            )
        picked = self._pick_items(items, scores, rng, source)
        picked_scores = [scores[i] for i in picked]
        return SampledRow(
            query_id=_read_id(query),
            query=self._read_content(query, f"{source}: the query"),
            item_ids=[_read_id(items[i]) for i in picked],
            items=[self._read_content(items[i], f"{source}: item {i}") for i in picked] if self.item_texts else None,
            scores=None if None in picked_scores else picked_scores,  # type: ignore[typeddict-item]
        )

    def _pick_items(self, items: list[dict[str, Any]], scores: list[Any], rng: random.Random, source: str) -> list[int]:
        """Return the positions of the sampled items, the positive first."""
        positives = self._list_positives(items, scores)
        if not positives:
            rule = {"type": f" of type {self.positive_type!r}", "score_above": f" with a score above {self.threshold}"}
            missing = f"none of the {len(items)} items is a positive{rule.get(self.positive, '')}"
            raise TooFewItemsError(f"{source}: {missing}. Change the rule positive={self.positive!r}, or {_SKIP_ADVICE}.")
        negatives = _list_negatives(items, positives)
        if len(negatives) < self.negatives_per_row:
            raise TooFewItemsError(
                f"{source}: negatives_per_row={self.negatives_per_row} needs at least {self.negatives_per_row} items besides "
                f"the positive, got {len(negatives)}. Lower negatives_per_row, or {_SKIP_ADVICE}.",
                len(negatives),
            )
        return [rng.choice(positives), *rng.sample(negatives, self.negatives_per_row)]

    def _list_positives(self, items: list[dict[str, Any]], scores: list[Any]) -> list[int]:
        """Return the positions of all items that can be the positive."""
        positions = range(len(items))
        if self.positive == "type" or (self.positive == "auto" and any(item.get("type") is not None for item in items)):
            return [i for i in positions if items[i].get("type") == self.positive_type]
        if self.positive == "score_above":
            return [i for i in positions if scores[i] > self.threshold]
        if self.positive == "top":
            return sorted(positions, key=scores.__getitem__, reverse=True)[:1]
        return list(positions[:1])

    def _read_content(self, record: Mapping[str, Any], source: str) -> Content:
        """Return the text or the token ids of a query or an item."""
        text, tokens = record.get("content"), record.get("tokenized_content")
        if self.content != "tokens" and isinstance(text, str):
            return text
        are_tokens = isinstance(tokens, list) and bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)
        if self.content != "text" and are_tokens:
            return tokens  # type: ignore[return-value]
        expected = {"auto": "content or tokenized_content", "text": "content", "tokens": "tokenized_content"}[self.content]
        raise ValueError(
            f"{source} must have {expected} (a string, or a list of token ids), got content={text!r:.80} and "
            f"tokenized_content={tokens!r:.80}."
        )


def _list_negatives(items: list[dict[str, Any]], positives: list[int]) -> list[int]:
    """Return the positions of all items that can be negatives; a document that the row lists twice counts once."""
    negatives, seen = [], {_read_id(items[i]) for i in positives}
    for i in sorted(set(range(len(items))) - set(positives)):
        if (docno := _read_id(items[i])) is None or docno not in seen:
            negatives.append(i)
            seen.add(docno)
    return negatives


def _parse_row(row: Any, source: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the query and the items of a row, which may be a line of JSON."""
    try:
        row = json.loads(row) if isinstance(row, bytes) else row
        query, items = row["query"], row["items"]
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{source} must be {_FORMAT}, got {row!r:.80} ({err!r}). Check that the file is complete.") from err
    if not isinstance(query, dict) or not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{source} must be {_FORMAT}, got query={query!r:.60}, items={items!r:.60}.")
    return query, items


def _read_id(record: Mapping[str, Any]) -> str | None:
    return None if record.get("id") is None else str(record["id"])


def _read_score(item: Mapping[str, Any], source: str) -> float | None:
    score = item.get("score")
    if score is None:
        return None
    if type(score) in (int, float) and math.isfinite(score):
        return float(score)
    raise ValueError(f"{source}: the score of item {item.get('id')!r} must be a finite number, got {score!r}.")

"""Outcomes of a campaign: an answer is right, an error is clear, or it is something else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

RIGHT, CLEAR, UNCHECKABLE, OTHER = "right", "clear error", "not checkable", "other"
CLASSES = (RIGHT, CLEAR, UNCHECKABLE, OTHER)
"""From the best to the worst. ``not checkable`` is a well-formed change of a file that has no checksum."""
_MAX_EXAMPLES = 40


class Outcome(NamedTuple):
    """The class of what happened, and what happened in words."""

    kind: str
    detail: str = ""


def judge_error(err: BaseException, names: Iterable[str]) -> Outcome:
    """Return the class of an error.

    Args:
        err: The error.
        names: Names of the damaged file and of its directories. The message of a clear error contains one of them.
    """
    text = f"{type(err).__name__}: {err}"
    is_promised = type(err) is ValueError or isinstance(err, OSError)
    return Outcome(CLEAR if is_promised and any(name in str(err) for name in names) else OTHER, text[:300])


def find_worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst of several outcomes."""
    return max(outcomes, key=lambda outcome: CLASSES.index(outcome.kind))


class Table:
    """Counts of outcomes by row, with examples of those that must not happen.

    Args:
        title: Title of the table.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.bad: list[str] = []
        self.notes: list[str] = []

    def add(self, row: str, outcome: Outcome, example: str = "") -> None:
        """Count an outcome.

        Args:
            row: Row of the table, such as the file that was damaged.
            outcome: The outcome.
            example: Everything that is needed to repeat it.
        """
        self.counts[row][outcome.kind] += 1
        if outcome.kind == OTHER:
            self.bad.append(f"{row}, {example}: {outcome.detail}")

    @property
    def total(self) -> int:
        """Number of outcomes."""
        return sum(counts.total() for counts in self.counts.values())

    def __str__(self) -> str:
        width = max(map(len, [*self.counts, self.title, "all"]))
        total = sum(self.counts.values(), Counter())
        lines = [f"{self.title:<{width}} " + "".join(f"{kind:>15}" for kind in CLASSES)]
        for name, counts in [*sorted(self.counts.items()), ("all", total)]:
            lines.append(f"{name:<{width}} " + "".join(f"{counts[kind]:>15,}" for kind in CLASSES))
        lines += self.notes
        lines += [f"  other: {example}" for example in self.bad[:_MAX_EXAMPLES]]
        if len(self.bad) > _MAX_EXAMPLES:
            lines.append(f"  and {len(self.bad) - _MAX_EXAMPLES} more")
        return "\n".join(lines)

    def check(self, at_least: int) -> None:
        """Check that there are enough outcomes, and that all of them are allowed."""
        assert self.total >= at_least, f"{self.total} outcomes, expected at least {at_least}"
        assert not self.bad, f"{len(self.bad)} of {self.total} are neither right nor a clear error; see the table"

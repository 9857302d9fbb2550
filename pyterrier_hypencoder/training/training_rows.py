"""Stream sampled training rows from JSONL files, or take them from memory."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby, islice
from typing import Any

import torch
from more_itertools import chunked

from ..options import check_choice, check_non_negative, check_positive
from .packages import require_package
from .row_files import Paths, is_rows, list_row_files, read_lines, read_rows
from .row_sampler import RowSampler, SampledRow, TooFewItemsError

_LOG = logging.getLogger(__name__)


class TrainingRows(torch.utils.data.IterableDataset[SampledRow]):
    """Stream sampled rows of JSONL files, in memory that does not grow with the files, or of a list.

    Hugging Face ``datasets`` shuffles the lines of files. Rows in memory are shuffled as a whole. Each process parses only
    its own rows. With ``on_too_few_items="skip"`` it parses all rows, so all processes still get the same number.

    The sample of a row depends only on the seed, the epoch, the position of its file in the list, and its line. The number
    of processes and of ``DataLoader`` workers does not change it. Each worker reads its own files, so using
    more workers than files has no benefit, and only zero or one worker keeps the order of the rows.

    Attributes can be changed until the iteration starts.

    Args:
        source: File (``.jsonl``, ``.jsonl.gz``), directory or pattern with ``*``, or a list of them. Or the rows themselves:
            a list of dictionaries with ``query`` and ``items``, or a ``datasets.Dataset`` of them.
        sampler: Sampler that draws the items of each row.
        shuffle_buffer: Number of lines in the shuffle buffer. 0 keeps the order.
        seed: Seed of shuffling and sampling.
        rank: Number of this process, from 0. It gets every ``world_size``-th row.
        world_size: Number of processes. All get the same number of rows, so up to ``world_size - 1`` rows are left out.
        epochs: Number of passes over the files. None repeats them forever.
        skip: Number of this process's rows to leave out at the start, to resume an interrupted run.
        on_too_few_items: ``error``, or ``skip`` to leave out rows without a positive or with too few items.

    Raises:
        FileNotFoundError: If a path matches no file.
        ImportError: If the package datasets is not installed.
        ValueError: If an option has a wrong value. During the iteration: if a row is malformed (the message names file, row
            and query) or if there are no rows.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name) / "rows.jsonl"
        >>> row = {"query": {"content": "red planet"}, "items": [{"content": "Mars"}, {"content": "Venus"}]}
        >>> _ = path.write_text(json.dumps(row))
        >>> for sampled in TrainingRows(path, RowSampler(negatives_per_row=1)):
        ...     print(sampled["query"], sampled["items"])
        red planet ['Mars', 'Venus']
        >>> folder.cleanup()
    """

    def __init__(
        self,
        source: Paths | Sequence[Any],
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
        require_package("datasets")
        check_positive("world_size", world_size)
        for name, value in {"shuffle_buffer": shuffle_buffer, "seed": seed, "rank": rank, "skip": skip}.items():
            check_non_negative(name, value)
        if epochs is not None:
            check_positive("epochs", epochs)
        if rank >= world_size:
            raise ValueError(f"rank must be below world_size={world_size}, got {rank}.")
        check_choice("on_too_few_items", on_too_few_items, ("error", "skip"))
        self.rows: Sequence[Any] | None = source if is_rows(source) else None
        self.files = list_row_files(source) if self.rows is None else []
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
        """Set the number of the first pass of the next iteration, on which shuffling and sampling depend."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampledRow]:
        workers = torch.utils.data.get_worker_info()
        if self.skip and workers is not None and workers.num_workers > 1:
            raise ValueError(f"skip={self.skip} needs at most one DataLoader worker, got {workers.num_workers}.")
        must_find_rows = workers is None or workers.num_workers == 1
        if self.on_too_few_items == "skip":  # parse first, because only then it is known which lines are rows
            return islice(self._take_rank(self._sample_lines(self._read_epochs(self.epoch, must_find_rows))), self.skip, None)
        n_lines = self._count_lines() if self.skip else 0
        epochs_done, lines_done = divmod(self.skip * self.world_size, max(1, n_lines))
        lines = islice(self._read_epochs(self.epoch + epochs_done, must_find_rows), lines_done, None)
        return self._sample_lines(self._take_rank(lines))

    def count_rows(self) -> int:
        """Return the number of rows of one pass over all processes. Skipped rows are not counted."""
        if self.on_too_few_items == "error":
            return self._count_lines()
        return sum(1 for _ in self._sample_lines({"epoch": 0, **line} for line in self._read_lines()))

    def _count_lines(self) -> int:
        return sum(1 for _ in self._read_lines())

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        return read_lines(list(enumerate(self.files))) if self.rows is None else read_rows(self.rows)

    def _take_rank(self, stream: Iterator[Any]) -> Iterator[Any]:
        """Yield every ``world_size``-th element, and drop an incomplete last round."""
        if self.world_size == 1:
            return stream
        return (turn[self.rank] for turn in chunked(stream, self.world_size) if len(turn) == self.world_size)

    def _read_epochs(self, first: int, must_find_rows: bool) -> Iterator[dict[str, Any]]:
        """Yield the lines of all passes from ``first`` on, as dictionaries with epoch, file, row and line.

        Raises:
            ValueError: If a pass has no lines and ``must_find_rows`` is True.
        """
        for epoch, lines in self._shuffle_lines(first):
            is_empty = True
            for line in lines:
                is_empty = False
                yield {"epoch": epoch, **line}
            if is_empty:
                if must_find_rows:
                    raise ValueError(f"No training rows in {self.files}. Check that the files are complete.")
                return  # one of several workers, without a file

    def _shuffle_lines(self, first: int) -> Iterator[tuple[int, Iterable[dict[str, Any]]]]:
        """Yield the number and the shuffled lines of each pass."""
        epochs = count(first) if self.epochs is None else range(first, self.epoch + self.epochs)
        if self.rows is not None:
            for epoch in epochs:
                yield epoch, read_rows(self.rows, f"{self.seed}/{epoch}" if self.shuffle_buffer else None)
            return
        from datasets import IterableDataset  # type: ignore[import-untyped]

        stream = IterableDataset.from_generator(read_lines, gen_kwargs={"files": list(enumerate(self.files))})
        if self.shuffle_buffer:
            stream = stream.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        for epoch in epochs:
            if self.shuffle_buffer:  # otherwise it would only change the order of the files
                stream.set_epoch(epoch)
            yield epoch, stream

    def _sample_lines(self, lines: Iterable[dict[str, Any]]) -> Iterator[SampledRow]:
        for _, epoch_lines in groupby(lines, key=lambda line: line["epoch"]):
            n_rows = 0
            skipped: list[TooFewItemsError] = []
            for line in epoch_lines:
                sampled = self._sample_line(line, skipped)
                if sampled is not None:
                    n_rows += 1
                    yield sampled
            self._report_skipped(n_rows, skipped)

    def _sample_line(self, line: dict[str, Any], skipped: list[TooFewItemsError]) -> SampledRow | None:
        """Sample one line. If it has too few items and such rows are skipped, note the error and return None."""
        # Python seeds with the SHA-512 of a string, so PYTHONHASHSEED does not matter.
        rng = random.Random(f"{self.seed}/{line['epoch']}/{line['file']}/{line['row']}")
        name = "the rows" if self.rows is not None else self.files[line["file"]]
        try:
            return self.sampler(line["line"], rng, f"{name}, row {line['row']}")
        except TooFewItemsError as err:
            if self.on_too_few_items == "error":
                raise
            skipped.append(err.with_traceback(None))
            return None

    def _report_skipped(self, n_rows: int, skipped: list[TooFewItemsError]) -> None:
        """Log how many rows of a pass were skipped.

        Raises:
            ValueError: If all rows were skipped. The message names the option to change.
        """
        if skipped and n_rows:
            _LOG.warning(
                "Skipped %d of %d rows without a positive or with too few items.", len(skipped), n_rows + len(skipped)
            )
        if not skipped or n_rows:
            return
        source = "the list" if self.rows is not None else ", ".join(self.files)
        most = max((err.n_negatives for err in skipped if err.n_negatives is not None), default=None)
        if most is None:
            raise ValueError(
                f"None of the {len(skipped)} rows in {source} has a positive. Check positive={self.sampler.positive!r}."
            )
        advice = f"Set negatives_per_row={most}" if most else "Find more negatives"
        raise ValueError(
            f"All {len(skipped)} rows in {source} have no positive or fewer than {self.sampler.negatives_per_row} negatives: "
            f"they have at most {most}. {advice}, or write rows with more negatives (negatives_per_query)."
        )

"""Tokenise texts: in any number of threads at once, and without reading all of a long text."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ..index.reading import guard_reading, make_error

_CHARACTERS_PER_TOKEN = 8
"""Characters of a text that are tokenised first, per token that is needed. English has about 5."""
_MIN_CHARACTERS = 1024
_SPARE_TOKENS = 32
"""A shortened text must have this number of further tokens, because its last tokens may depend on what was cut off."""
_GROWTH = 4
_CALL_CHARACTERS = 2**21
"""Characters that are tokenised in one call. A call takes about 100 bytes for every token."""
_PROBES = ("a", "1", "的")


class TextTokenizer:
    """Turn texts into token ids of at most a given number, as the tokenizer of a model does with ``truncation=True``.

    Truncation is a setting of a fast tokenizer that all threads share. Here, it is switched off once, and the ids are cut
    afterwards.

    Args:
        tokenizer: A Hugging Face tokenizer, which must not be used elsewhere.
        lower_case: If True, texts are lower-cased first.

    Raises:
        ValueError: If the tokenizer has invalid settings.
    """

    def __init__(self, tokenizer: Any, *, lower_case: bool = False) -> None:
        self.tokenizer = tokenizer
        self.lower_case = False
        self._lock = threading.Lock()
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        limit = _read_max_length(tokenizer)
        with guard_reading(f"The tokenizer {tokenizer.name_or_path!r}"):
            tokenizer("a")  # applies all other settings to the backend
            if lower_case:
                self._add_lower_case()
            if self._backend is None:
                self.num_special_tokens = int(tokenizer.num_special_tokens_to_add())
            else:
                self._backend.no_truncation()
                self._backend.no_padding()
                self.num_special_tokens = self._backend.num_special_tokens_to_add(False)
                self._num_before = self._count_first_special_tokens()
        self.max_length = int(min(limit, 2**31))
        self.pad_id = tokenizer.pad_token_id or 0

    def _add_lower_case(self) -> None:
        """Lower-case texts before all other steps, as sentence-transformers does."""
        from tokenizers.normalizers import Lowercase
        from tokenizers.normalizers import Sequence as NormalizerSequence

        if self._backend is None:
            raise make_error(
                f"do_lower_case is not supported for {type(self.tokenizer).__name__}, which is slow. Save its fast version."
            )
        normalizer = self._backend.normalizer
        if not getattr(normalizer, "lowercase", False):
            self._backend.normalizer = NormalizerSequence([Lowercase(), *([] if normalizer is None else [normalizer])])
            self.lower_case = True

    def _count_first_special_tokens(self) -> int:
        backend: Any = self._backend
        for probe in _PROBES:
            mask = backend.encode(probe).special_tokens_mask
            if 0 in mask:
                return mask.index(0)
        return self.num_special_tokens

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text without special tokens."""
        if self._backend is not None:
            return len(self._backend.encode(text, add_special_tokens=False))
        with self._lock:
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, texts: Sequence[str], max_length: int, *, prefix: str = "") -> list[list[int]]:
        """Return the token ids of texts.

        Args:
            texts: The texts.
            max_length: Maximum number of tokens, with special tokens.
            prefix: Text before every text.

        Returns:
            One list of ids per text.
        """
        if self._backend is None:
            with self._lock:  # slow tokenizers are written in Python and keep state
                return self.tokenizer([prefix + text for text in texts], truncation=True, max_length=max_length)["input_ids"]
        ids: list[list[int]] = [[]] * len(texts)
        pending = list(range(len(texts)))
        limit = max(_MIN_CHARACTERS, _CHARACTERS_PER_TOKEN * max_length)
        if self.tokenizer.truncation_side == "left":
            limit = max(map(len, texts), default=0)  # the last tokens are kept
        while pending:
            again = []
            heads = [shorten_text(texts[i], limit) for i in pending]
            for rows in _group_by_size([len(prefix) + len(head) for head in heads]):
                encodings = self._backend.encode_batch_fast([prefix + heads[row] for row in rows])
                for row, encoding in zip(rows, encodings, strict=True):
                    i = pending[row]
                    if len(heads[row]) < len(texts[i]) and len(encoding) < max_length + _SPARE_TOKENS:
                        again.append(i)
                    else:
                        ids[i] = self._truncate(encoding.ids, max_length)
            pending, limit = again, limit * _GROWTH
        return ids

    def _truncate(self, ids: list[int], max_length: int) -> list[int]:
        """Cut ids to a number of tokens. Special tokens stay."""
        surplus = len(ids) - max_length
        if surplus <= 0:
            return ids
        if self.tokenizer.truncation_side == "left":
            return ids[: self._num_before] + ids[self._num_before + surplus :]
        end = len(ids) - (self.num_special_tokens - self._num_before)
        return ids[: end - surplus] + ids[end:]


def _read_max_length(tokenizer: Any) -> float:
    limit = tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 1:
        raise make_error(
            f"model_max_length in the tokenizer_config.json of {tokenizer.name_or_path!r} must be a positive number, got "
            f"{limit!r}. Correct it."
        )
    return limit


def shorten_text(text: str, limit: int) -> str:
    """Return the words of a text that lie within the first ``limit`` characters.

    The last of them is complete, because some tokenizers treat a part of a word quite differently.

    Args:
        text: The text.
        limit: Number of characters.

    Returns:
        The start of the text, or all of it if it is not much longer, or if a single word fills most of the start.
    """
    if len(text) <= limit + limit // 4:
        return text
    end = max(text.rfind(" ", 0, limit), text.rfind("\n", 0, limit))
    if end < limit // 2:
        # Nothing is a safe end, such as in a text without spaces.
        return text if len(text) <= _GROWTH * limit else shorten_text(text, _GROWTH * limit)
    return text[:end].rstrip(" \n\r\t")


def _group_by_size(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield row numbers in groups whose sizes add up to at most ``_CALL_CHARACTERS``, or of one row."""
    group: list[int] = []
    total = 0
    for row, size in enumerate(sizes):
        if group and total + size > _CALL_CHARACTERS:
            yield group
            group, total = [], 0
        group.append(row)
        total += size
    if group:
        yield group

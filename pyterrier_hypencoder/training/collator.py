"""Collate sampled rows into batches of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..options import check_positive
from .row_sampler import Content, SampledRow


@dataclass(frozen=True)
class Collator:
    """Collate sampled rows into a batch of tensors.

    Args:
        tokenizer: Hugging Face tokenizer. None if all texts are given as token ids.
        query_max_length: Maximum number of tokens of a query; 32 in the paper. Longer ones keep their last special token.
        doc_max_length: Maximum number of tokens of a document; 196 in the paper, 512 in the released README.
        query_prefix: Text before every query.
        doc_prefix: Text before every document.
        vectors: Function from n docnos to document vectors (n, D), for frozen documents. The items' texts are then not used.
        pad_token_id: Padding token if there is no tokenizer.

    Raises:
        ValueError: If a length is not a positive integer.

    Example:
        >>> row = {"query_id": "q1", "query": [2, 7, 3], "item_ids": ["d1", "d2"], "items": [[2, 3], [2, 8, 9, 3]],
        ...     "scores": [5.0, 1.0]}
        >>> batch = Collator(doc_max_length=3)([row])
        >>> batch["item_ids"]
        tensor([[2, 3, 0],
                [2, 8, 3]])
        >>> batch["teacher"]
        tensor([[5., 1.]])
    """

    tokenizer: Any = None
    query_max_length: int = 32
    doc_max_length: int = 196
    query_prefix: str = ""
    doc_prefix: str = ""
    vectors: Callable[[list[str]], np.ndarray] | None = None
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        check_positive("query_max_length", self.query_max_length)
        check_positive("doc_max_length", self.doc_max_length)

    def __call__(self, rows: Sequence[SampledRow]) -> dict[str, Tensor]:
        """Collate B rows with M items each.

        Args:
            rows: Sampled rows with equal numbers of items.

        Returns:
            Tensors by name, padded on the right to the longest text of the batch:

            - ``query_ids`` and ``query_mask``: int64, shape (B, T).
            - ``item_ids`` and ``item_mask``: int64, row by row, shape (B * M, T). Only without ``vectors``.
            - ``item_vectors``: float32, shape (B * M, D). Only with ``vectors``.
            - ``teacher``: float32, shape (B, M). Only if all rows have scores.

        Raises:
            ValueError: If rows have different numbers of items, or if a text or a vector is missing or malformed.
        """
        sizes = sorted({len(row["item_ids"]) for row in rows})
        if len(sizes) != 1:
            raise ValueError(f"All rows of a batch must have the same number of items, got {sizes}.")
        batch = self._encode("query", [row["query"] for row in rows], self.query_max_length, self.query_prefix)
        if self.vectors is not None:
            batch["item_vectors"] = self._look_up([docno for row in rows for docno in row["item_ids"]])
        else:
            items = [item for row in rows for item in row["items"] or []]
            if len(items) != sizes[0] * len(rows):
                raise ValueError("The rows have no item texts. Sample with item_texts=True, or pass vectors to the collator.")
            batch |= self._encode("item", items, self.doc_max_length, self.doc_prefix)
        if all(row["scores"] is not None for row in rows):
            batch["teacher"] = torch.tensor([row["scores"] for row in rows], dtype=torch.float32, device="cpu")  # (B, M)
        return batch

    def _encode(self, name: str, contents: list[Content], max_length: int, prefix: str) -> dict[str, Tensor]:
        """Return padded token ids and attention mask of texts, which may be token ids already."""
        pad = self.pad_token_id
        if self.tokenizer is not None:
            max_length = min(max_length, self.tokenizer.model_max_length)
            pad = self.tokenizer.pad_token_id or 0
        encoded = self._tokenize([prefix + content for content in contents if isinstance(content, str)], max_length)
        # A blank text has no tokens if the tokenizer adds no special ones.
        tokens = [(next(encoded) or [pad]) if isinstance(c, str) else self._cut(c, max_length, prefix) for c in contents]
        ids = pad_sequence(
            [torch.tensor(t, dtype=torch.long, device="cpu") for t in tokens], batch_first=True, padding_value=pad
        )
        mask = pad_sequence([torch.ones(len(t), dtype=torch.long, device="cpu") for t in tokens], batch_first=True)
        return {f"{name}_ids": ids, f"{name}_mask": mask}

    def _tokenize(self, texts: list[str], max_length: int) -> Iterator[list[int]]:
        """Return the token ids of each text."""
        if not texts:
            return iter(())
        if self.tokenizer is None:
            raise ValueError(f"Without a tokenizer all texts must be token ids, got {texts[0]!r:.60}. Pass a tokenizer.")
        return iter(self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"])

    def _cut(self, tokens: list[int], max_length: int, prefix: str) -> list[int]:
        """Return at most ``max_length`` token ids, and keep the last one, which is a special token."""
        if prefix:
            raise ValueError(f"The prefix {prefix!r} needs texts, got token ids. Sample with content='text'.")
        if self.tokenizer is not None and max(tokens) >= len(self.tokenizer):
            raise ValueError(
                f"Token ids must be below {len(self.tokenizer)}, the size of the tokenizer, got {max(tokens)}. The rows were "
                "made with another tokenizer: sample with content='text'."
            )
        return tokens if len(tokens) <= max_length else [*tokens[: max_length - 1], tokens[-1]]

    def _look_up(self, docnos: list[str | None]) -> Tensor:
        """Return the vectors of documents (n, D)."""
        if None in docnos:
            raise ValueError("Document vectors are found by docno, but some items have no id. Add ids to all items.")
        vectors = np.asarray(self.vectors(docnos), dtype=np.float32)  # type: ignore[misc, arg-type]
        if vectors.ndim != 2 or len(vectors) != len(docnos):
            raise ValueError(f"vectors must return an array of shape ({len(docnos)}, D), got {vectors.shape}.")
        if not np.isfinite(vectors).all():
            docno = docnos[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise ValueError(f"The vector of document {docno!r} contains NaN or infinity. Encode the document again.")
        return torch.from_numpy(vectors.copy())

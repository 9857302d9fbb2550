"""Batches: sampled rows made into tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..options import check_positive
from .data import Content, SampledRow


@dataclass(frozen=True)
class Collator:
    """Makes tensors of sampled rows.

    Args:
        tokenizer: of Hugging Face, for rows with texts; None where all texts are given as tokens.
        query_max_length: tokens of a query, as in the paper; the rest is cut, the last special token kept.
        doc_max_length: tokens of a document, as in the paper (512 in the released README).
        query_prefix: put before every query's text.
        doc_prefix: put before every document's text.
        vectors: gives the vectors (n, D) of n docnos, where documents are frozen; their texts are then not looked at.
        pad_token_id: where there is no tokenizer.
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
        """Makes a batch.

        Returns:
            ``query_ids``, ``query_mask`` (B, T) int64; ``item_ids``, ``item_mask`` (B * M, T) int64, row by row, or
            ``item_vectors`` (B * M, D) float32; ``teacher`` (B, M) float32 where all rows have scores. Padded on the right,
            each to its own longest text.

        Raises:
            ValueError: where rows have different numbers of items, or a text or vector is not what it should be.
        """
        sizes = sorted({len(row["item_ids"]) for row in rows})
        if len(sizes) != 1:
            raise ValueError(f"expected rows with the same number of items, found {sizes}; sample them all alike")
        queries = [row["query"] for row in rows]
        batch = self._encode("query", queries, self.query_max_length, self.query_prefix)
        if self.vectors is not None:
            batch["item_vectors"] = self._look_up([docno for row in rows for docno in row["item_ids"]])
        else:
            items = [item for row in rows for item in row["items"] or []]
            if len(items) != sizes[0] * len(rows):
                raise ValueError(
                    "expected rows with the items' texts, found none; sample with item_texts=True, or give vectors"
                )
            batch |= self._encode("item", items, self.doc_max_length, self.doc_prefix)
        if all(row["scores"] is not None for row in rows):
            batch["teacher"] = torch.tensor([row["scores"] for row in rows], dtype=torch.float32)
        return batch

    def _encode(self, name: str, contents: list[Content], max_length: int, prefix: str) -> dict[str, Tensor]:
        texts = [prefix + content for content in contents if isinstance(content, str)]
        pad, encoded = self.pad_token_id, iter(())
        if self.tokenizer is not None:
            max_length = min(max_length, self.tokenizer.model_max_length)
            pad = self.tokenizer.pad_token_id or 0
        elif texts:
            raise ValueError(
                f"expected token ids, as there is no tokenizer, found the text {texts[0]!r:.60}; give a tokenizer"
            )
        if texts:
            encoded = iter(self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"])
        # A blank text has no tokens at all where the tokenizer adds no special ones.
        tokens = [(next(encoded) or [pad]) if isinstance(c, str) else self._cut(c, max_length, prefix) for c in contents]
        ids = pad_sequence([torch.tensor(t) for t in tokens], batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones(len(t), dtype=torch.long) for t in tokens], batch_first=True)
        return {f"{name}_ids": ids, f"{name}_mask": mask}

    def _cut(self, tokens: list[int], max_length: int, prefix: str) -> list[int]:
        if prefix:
            raise ValueError(f"expected texts to put {prefix!r} before, found token ids; sample with content='text'")
        if self.tokenizer is not None and max(tokens) >= len(self.tokenizer):
            raise ValueError(
                f"expected token ids below {len(self.tokenizer)}, the tokenizer's size, found {max(tokens)}; the data were "
                "made with another tokenizer: sample with content='text'"
            )
        return tokens if len(tokens) <= max_length else [*tokens[: max_length - 1], tokens[-1]]

    def _look_up(self, docnos: list[str | None]) -> Tensor:
        if None in docnos:
            raise ValueError("expected an id in every item to find its vector by, found items without; add docnos as ids")
        vectors = np.asarray(self.vectors(docnos), dtype=np.float32)  # type: ignore[misc, arg-type]
        if vectors.ndim != 2 or len(vectors) != len(docnos):
            raise ValueError(f"vectors: expected an array of shape ({len(docnos)}, D), found {vectors.shape}")
        if not np.isfinite(vectors).all():
            docno = docnos[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise ValueError(f"vectors: expected finite numbers, found NaN or infinity in that of {docno!r}; encode it again")
        return torch.tensor(vectors)

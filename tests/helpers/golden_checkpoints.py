"""Golden checkpoints, and the values that the released code computed with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyterrier_hypencoder import BiEncoder, QNets
from pyterrier_hypencoder.encoders import checkpoint

HERE = Path(__file__).parents[1] / "golden"
ROOTS = [HERE, *([Path(os.environ["HYPENCODER_GOLDEN"])] if os.environ.get("HYPENCODER_GOLDEN") else [])]
FOLDERS = {path.parent.name: path.parent for root in ROOTS for path in sorted(root.glob("tiny_*/vocab.txt"))}
FOLDERS.pop("tiny_base_bert", None)  # the backbone of the others, not a dual encoder
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def copy_tokenizer(folder: Path) -> None:
    """Copy the tokenizer that all golden checkpoints share into a folder."""
    for name in TOKENIZER_FILES:
        shutil.copy(HERE / "tiny_6l_cls_shared" / name, folder)


def make_bi_encoder(folder: Path, **options: Any) -> BiEncoder:
    """Make a bi-encoder from a folder, in float32 on the CPU and with short documents."""
    return BiEncoder(folder, **({"device": "cpu", "dtype": "fp32", "doc_max_length": 64} | options))


class Golden:
    """A folder with a checkpoint and its golden values; a folder without values takes those of ``tiny_6l_cls_shared``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        numbers = folder if (folder / "golden.npz").exists() else folder.parent / "tiny_6l_cls_shared"
        self.arrays = {name: torch.from_numpy(array) for name, array in np.load(numbers / "golden.npz").items()}
        self.facts = json.loads((numbers / "golden.json").read_text())
        self.keys = json.loads((numbers / "state_dict_keys.json").read_text())
        self.model, _ = checkpoint.load(str(folder), pool_padding=True)
        self.texts = json.loads((HERE / "texts.json").read_text())

    def tokens(self, side: str, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask of some texts, (B, T) each; ``side`` is ``q`` or ``doc``."""
        mask = self.arrays[f"{side}_mask"][rows].long()
        longest = int(mask.sum(1).max())
        return self.arrays[f"{side}_ids"][rows, :longest].long(), mask[:, :longest]

    @torch.inference_mode()
    def doc_vectors(self, batch: int) -> torch.Tensor:
        """Return the vectors of all documents, (N, D), encoded in batches of a fixed size."""
        return torch.cat([self.model.passage_encoder(*self.tokens("doc", slice(i, i + batch))) for i in range(0, 120, batch)])

    @torch.inference_mode()
    def qnets(self) -> QNets:
        """Return the q-nets of all queries, encoded one at a time."""
        return QNets.cat([self.model.query_encoder(*self.tokens("q", slice(i, i + 1))) for i in range(5)])

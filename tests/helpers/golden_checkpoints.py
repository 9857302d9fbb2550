"""The golden checkpoints and the numbers that the released code computed with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from pyterrier_hypencoder import QNets
from pyterrier_hypencoder.encoders import checkpoint

HERE = Path(__file__).parents[1] / "golden"
ROOTS = [HERE, *([Path(os.environ["HYPENCODER_GOLDEN"])] if os.environ.get("HYPENCODER_GOLDEN") else [])]
FOLDERS = {path.parent.name: path.parent for root in ROOTS for path in sorted(root.glob("tiny_*/vocab.txt"))}
FOLDERS.pop("tiny_base_bert", None)  # the backbone's own weights, no dual encoder


class Golden:
    """One folder: its checkpoint, and the numbers (those of its twin where it has none of its own)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        numbers = folder if (folder / "golden.npz").exists() else folder.parent / "tiny_6l_cls_shared"
        self.arrays = {name: torch.from_numpy(array) for name, array in np.load(numbers / "golden.npz").items()}
        self.facts = json.loads((numbers / "golden.json").read_text())
        self.keys = json.loads((numbers / "state_dict_keys.json").read_text())
        self.model, _ = checkpoint.load(str(folder), pool_padding=True)
        self.texts = json.loads((HERE / "texts.json").read_text())

    def tokens(self, side: str, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        mask = self.arrays[f"{side}_mask"][rows].long()
        longest = int(mask.sum(1).max())
        return self.arrays[f"{side}_ids"][rows, :longest].long(), mask[:, :longest]

    @torch.inference_mode()
    def doc_vectors(self, batch: int) -> torch.Tensor:
        return torch.cat([self.model.passage_encoder(*self.tokens("doc", slice(i, i + batch))) for i in range(0, 120, batch)])

    @torch.inference_mode()
    def qnets(self) -> QNets:
        return QNets.cat([self.model.query_encoder(*self.tokens("q", slice(i, i + 1))) for i in range(5)])

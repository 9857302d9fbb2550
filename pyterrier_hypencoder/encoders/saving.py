"""Save encoders as folders that this package and others load, and upload them to the hub."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..index.files import name_file
from .dense_settings import DenseSettings
from .networks import TextEncoder

_MODULES = {"": "models.Transformer", "1_Pooling": "models.Pooling", "2_Normalize": "models.Normalize"}
_POOLING_MODES = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}


@contextmanager
def replace_folder(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder, and rename it to a directory if no error occurs.

    Args:
        directory: The directory. It must not exist, or be empty.

    Raises:
        FileExistsError: If it exists and is not empty.
        OSError: If it cannot be written. The error names the directory.
    """
    path = Path(directory).expanduser().absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty. Delete it, or give another directory.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        with name_file(path):
            yield folder
        if path.exists():
            path.rmdir()
        os.replace(folder, path)


def are_one_encoder(query: TextEncoder, document: TextEncoder) -> bool:
    """Return True if queries and documents are encoded alike, so one dense model can hold both."""
    if query.projection is not None or (query.pooling, query.normalize) != (document.pooling, document.normalize):
        return False
    weights, others = query.transformer.state_dict(), document.transformer.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in weights.items())


def write_dense_model(encoder: TextEncoder, settings: DenseSettings, tokenizer: Any, directory: Path, max_length: int) -> None:
    """Write a dense model that sentence-transformers, transformers and pyterrier_dr load.

    Args:
        encoder: Encoder of queries and documents.
        settings: Its settings. Prompts are stored under the names ``query`` and ``document``.
        tokenizer: Its Hugging Face tokenizer.
        directory: Directory to write into.
        max_length: Maximum number of tokens of a text.

    Raises:
        ValueError: If the model has layers or other settings beside pooling, normalisation and prompts.
    """
    unusual = (len(encoder.layers), encoder.truncate_dim, settings.lower_case, settings.include_prompt)
    if unusual != (0, None, False, True):
        raise ValueError(
            "The model must have nothing but a transformer, pooling, normalisation and prompts, got further layers or "
            "settings. Copy its folder instead."
        )
    encoder.transformer.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    kinds = [item for item in _MODULES.items() if item[0] != "2_Normalize" or encoder.normalize]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    modes = {f"pooling_mode_{mode}": name == encoder.pooling for name, mode in _POOLING_MODES.items()}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": encoder.vec_size, **modes, "include_prompt": True},
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": settings.query_prompt, "document": settings.doc_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if encoder.normalize else "dot",
        },
    }
    for path, _ in kinds:
        (directory / path).mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def upload(save: Callable[[Path], Any], repo_id: str, *, private: bool | None, token: str | None, commit_message: str) -> str:
    """Save a model in a temporary folder, and upload the folder to the hub; see :meth:`.Encoder.push_to_hub`."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(folder)
        try:
            api = HfApi(token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
        except Exception as err:  # the clients of different versions raise their own types
            raise OSError(
                f"The model could not be uploaded to {repo_id!r} ({repr(err)[:200]}). Check name, token and network."
            ) from err
    return str(url)

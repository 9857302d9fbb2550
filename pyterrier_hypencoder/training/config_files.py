"""Configuration files: find, read and check them with OmegaConf."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from .config import MOVED_ARGUMENTS, SECTIONS, Config

try:
    import yaml  # type: ignore[import-untyped]
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException, ValidationError
except ImportError as err:
    raise ImportError(f"Training needs more packages ({err}). Run: pip install 'pyterrier-hypencoder[train]'") from err

FOLDER = Path(__file__).parent / "configs"
"""Folder of the configurations that come with this package."""


def list_configs() -> dict[str, str]:
    """Return the names of the configurations that come with this package, and the title of each."""
    titles = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(FOLDER.glob("*.yaml"))}
    return {name: title.removeprefix("#").strip() for name, title in titles.items()}


def find_config_file(name: str, folder: Path | None = None) -> Path:
    """Return the path of a configuration file.

    Args:
        name: Path of a file, or the name of a configuration that comes with this package.
        folder: A folder in which a relative path is looked up first.

    Raises:
        FileNotFoundError: If there is no such file. The message lists the configurations that come with this package.
    """
    for path in ([] if folder is None else [folder / name]) + [Path(name), FOLDER / f"{name.removesuffix('.yaml')}.yaml"]:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"No configuration file at {name!r}. Give the path of a YAML file, or one of these names: {', '.join(list_configs())}."
    )


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
    _check_keys("model.qnet", config.model.qnet, _list_qnet_options())
    if config.trainer.arguments:
        _check_keys("trainer.arguments", config.trainer.arguments, _list_training_arguments())
    return config


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """Read a file, and merge it over the file that its key ``base`` names."""
    if path.resolve() in seen:
        raise ValueError(f"base: {path} is based on itself, through {', '.join(file.name for file in seen)}.")
    try:
        values = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, OmegaConfBaseException) as err:
        raise ValueError(f"{path} is not a valid YAML file: {err}") from err
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} must contain keys and values, got a list.")
    base = values.pop("base", None)
    if base is None:
        return values
    merged: Any = OmegaConf.merge(_read_file(find_config_file(str(base), path.parent), (*seen, path.resolve())), values)
    return merged


def _apply_override(values: DictConfig, override: str) -> None:
    """Set the value of ``key=value``."""
    key, sign, _ = override.partition("=")
    if not sign or not all(key.split(".")):
        raise ValueError(f"Overrides have the form key=value, such as trainer.learning_rate=1e-5, got {override!r}.")
    try:
        OmegaConf.update(values, key, None)  # a mapping replaces the previous one, instead of extending it
        values.merge_with_dotlist([override])
    except (yaml.YAMLError, OmegaConfBaseException) as err:
        raise ValueError(f"{override!r} is not valid YAML: {err}") from err


def _check_section(cls: Any, values: Any, section: str = "") -> DictConfig:
    """Return a structured config of a dataclass, after checking the keys and types of all values."""
    if not isinstance(values, dict):
        raise ValueError(f"{section} must be a section with keys and values, got {values!r:.80}.")
    types = {entry.name: str(entry.type) for entry in dataclasses.fields(cls)}
    _check_keys(section, values, types)
    config = OmegaConf.structured(cls)
    for name, value in values.items():
        key = _join(section, name)
        if not section and name in SECTIONS and value is not None:
            value = _check_section(SECTIONS[name], value, name)
        try:
            config[name] = _adapt(value, types[name])
        except ValidationError as err:
            raise ValueError(f"{key} must be of type {types[name]}, got {value!r:.80}.") from err
        if value == [] or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{key} must be finite and not empty, got {value}.")
    for name in sorted(OmegaConf.missing_keys(config)):
        key = _join(section, name)
        raise ValueError(f"{key} is required. Set it in the file, or give {key}=... on the command line.")
    return config


def _adapt(value: Any, kind: str) -> Any:
    """Convert a single value to a list, and a number such as 1e6 to an integer, if the type asks for it."""
    if kind.startswith("list") and isinstance(value, str | int | float):
        return [value]
    return int(value) if kind.startswith("int") and isinstance(value, float) and value.is_integer() else value


def _check_keys(section: str, values: Iterable[Any], known: Collection[str]) -> None:
    """Check that all keys of a section exist, and suggest the most similar key if one does not."""
    for name in values:
        if name not in known:
            raise ValueError(f"Unknown key {_join(section, name)}. Did you mean {_find_similar(section, str(name))}?")


def _find_similar(section: str, name: str) -> str:
    """Return the key whose last part is most similar to a name; keys of the same section are preferred."""
    keys = [entry.name for entry in dataclasses.fields(Config)]
    keys += [f"{part}.{entry.name}" for part, cls in SECTIONS.items() for entry in dataclasses.fields(cls)]
    keys += [f"model.qnet.{key}" for key in _list_qnet_options()]
    keys += [f"trainer.arguments.{key}" for key in _list_training_arguments() if key not in MOVED_ARGUMENTS]

    def measure_similarity(key: str) -> float:
        other_section, _, other_name = key.rpartition(".")
        return difflib.SequenceMatcher(None, other_name, name).ratio() + 0.1 * (other_section == section)

    return max(keys, key=measure_similarity)


def _join(section: str, name: object) -> str:
    return f"{section}.{name}" if section else str(name)


def _list_qnet_options() -> list[str]:
    from ..qnet import QNetSpec

    return [entry.name for entry in dataclasses.fields(QNetSpec) if entry.name not in ("vector_dimensions", "narrowed")]


def _list_training_arguments() -> list[str]:
    """Return the names of the training arguments in the installed version of transformers."""
    from transformers import TrainingArguments

    return [entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init]

"""Model cards: what a model was trained on, how well it ranks, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINING_FILE = "training.json"
"""File of a trained model with the facts of its training run."""
CARD_OPTIONS = ("license", "language", "datasets", "base_model", "training_data", "measures")


def make_card(kind: str, name: str, training: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the text of a model card.

    Args:
        kind: ``Hypencoder`` or ``BiEncoder``.
        name: Name of the model.
        training: Facts of the training run, as the trainer writes them. They may be empty.
        given: Further facts by name: ``license``, ``language``, ``datasets`` and ``base_model`` for the header, and
            ``training_data`` (a text) and ``measures`` (values by name), which replace those of the training run.

    Raises:
        ValueError: If ``given`` has an unknown name.
    """
    from huggingface_hub import ModelCardData

    if unknown := sorted(set(given) - set(CARD_OPTIONS)):
        raise ValueError(f"card must have keys among {', '.join(CARD_OPTIONS)}, got {', '.join(unknown)}.")
    header = {key: given[key] for key in ("license", "language", "datasets", "base_model") if key in given}
    is_hypencoder = kind == "Hypencoder"
    tags = ["pyterrier", "dense-retrieval", *(["hypencoder"] if is_hypencoder else ["sentence-transformers"])]
    library = "pyterrier-hypencoder" if is_hypencoder else "sentence-transformers"
    data = ModelCardData(library_name=library, tags=tags, pipeline_tag=_get_pipeline_tag(kind), **header)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        _describe_kind(is_hypencoder),
        "## Usage",
        _describe_usage(kind, name),
        "## Training",
        str(given.get("training_data") or _describe_training(training)),
        "## Measures",
        _describe_measures(given.get("measures") or training.get("measures") or {}),
    ]
    return "\n\n".join(parts) + "\n"


def _get_pipeline_tag(kind: str) -> str:
    return "text-ranking" if kind == "Hypencoder" else "sentence-similarity"


def _describe_kind(is_hypencoder: bool) -> str:
    if is_hypencoder:
        return (
            "A [Hypencoder](https://arxiv.org/abs/2502.05364): queries become small neural networks, which score document "
            "vectors. It was saved by pyterrier-hypencoder."
        )
    return "A bi-encoder: queries and documents become vectors. It was saved by pyterrier-hypencoder."


def _describe_usage(kind: str, name: str) -> str:
    code = f"""```python
from pyterrier_hypencoder import {kind}, HypencoderIndexer

model = {kind}({name!r})  # the directory or the hub id of this model
index = HypencoderIndexer("docs.hyp", model).index(docs)  # dictionaries with docno and text
results = index.retriever(model).search("a query")
```"""
    return f"`pip install pyterrier-hypencoder`\n\n{code}"


def _describe_training(training: Mapping[str, Any]) -> str:
    if not training:
        return "No training run is recorded."
    return "| option | value |\n|---|---|\n" + "\n".join(
        f"| {key} | {_format(value)} |" for key, value in training.items() if key != "measures"
    )


def _describe_measures(measures: Mapping[str, Any]) -> str:
    if not measures:
        return "No measures are recorded."
    rows = "\n".join(f"| {key} | {_format(value)} |" for key, value in measures.items())
    return f"On the validation topics of the training run, unless stated otherwise.\n\n| measure | value |\n|---|---|\n{rows}"


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_format(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("|", "\\|")

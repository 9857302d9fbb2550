"""Hypencoder retrieval in PyTerrier: queries become small neural networks that score document vectors.

Public names are imported on first use, so importing the package is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import HypencoderIndex, HypencoderIndexer
    from .encoders.biencoder import BiEncoder
    from .encoders.hypencoder import Hypencoder
    from .qnet import QNets, QNetSpec
    from .search.graph import PRESETS
    from .training.estimator import HypencoderEstimator
    from .training.trainer import HypencoderTrainer
    from .transformers.measures import NumRounds, NumScored
    from .transformers.retriever import HypencoderRetriever
    from .transformers.scorer import HypencoderScorer

_MODULES = {
    "PRESETS": "search.graph",
    "BiEncoder": "encoders.biencoder",
    "Hypencoder": "encoders.hypencoder",
    "HypencoderEstimator": "training.estimator",
    "HypencoderIndex": "artifact",
    "HypencoderIndexer": "artifact",
    "HypencoderRetriever": "transformers.retriever",
    "HypencoderScorer": "transformers.scorer",
    "HypencoderTrainer": "training.trainer",
    "NumRounds": "transformers.measures",
    "NumScored": "transformers.measures",
    "QNetSpec": "qnet",
    "QNets": "qnet",
}
__all__ = [
    "PRESETS",
    "BiEncoder",
    "Hypencoder",
    "HypencoderEstimator",
    "HypencoderIndex",
    "HypencoderIndexer",
    "HypencoderRetriever",
    "HypencoderScorer",
    "HypencoderTrainer",
    "NumRounds",
    "NumScored",
    "QNetSpec",
    "QNets",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("pyterrier-hypencoder")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

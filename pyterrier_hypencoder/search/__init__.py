"""Which documents are evaluated: searches take a scoring callable and arrays, and know nothing of frames or text."""

from .exhaustive import exhaustive
from .results import Results, top_k

__all__ = ["Results", "exhaustive", "top_k"]

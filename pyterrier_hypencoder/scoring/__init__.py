"""How q-nets are evaluated: a scorer protocol, its back-ends, and the one place that chooses among them."""

from .backends import BACKENDS, ENVIRONMENT, PRECISIONS, make_scorer, select_backend
from .device import resolve_device
from .protocol import Backend, Scorer

__all__ = ["BACKENDS", "ENVIRONMENT", "PRECISIONS", "Backend", "Scorer", "make_scorer", "resolve_device", "select_backend"]

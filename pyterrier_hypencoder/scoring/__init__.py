"""Evaluate q-nets: one scorer protocol, its back-ends, and the choice between them."""

from .backends import BACKENDS, PRECISIONS, make_first_pass, make_scorer, select_backend
from .device import choose_search_device, has_native_bf16, parse_device, resolve_device
from .protocol import Backend, Scorer

scorer = make_scorer
"""Short name of :func:`make_scorer`, beside ``index.scorer``."""

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "Scorer",
    "choose_search_device",
    "has_native_bf16",
    "make_first_pass",
    "make_scorer",
    "parse_device",
    "resolve_device",
    "scorer",
    "select_backend",
]

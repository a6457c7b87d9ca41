"""Coterie serves a composition of experts: one endpoint in front of many whole language models, on one machine.

This module only names the public API; it knows nothing about the implementation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie.api import Answer, Chunk, Coterie, Message, Options, Query
    from coterie.composition.composition import load_composition
    from coterie.core.errors import CoterieError
    from coterie.engine.policy import Policy
    from coterie.engine.request import SamplingParams

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Chunk",
    "Coterie",
    "CoterieError",
    "Message",
    "Options",
    "Policy",
    "Query",
    "SamplingParams",
    "load_composition",
]
# Everything else lives in coterie.api. Imported lazily, so that a help page does not load the engine.
_ELSEWHERE = {
    "CoterieError": "coterie.core.errors",
    "Policy": "coterie.engine.policy",
    "SamplingParams": "coterie.engine.request",
    "load_composition": "coterie.composition.composition",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "coterie.api")), name)

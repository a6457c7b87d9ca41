"""Coterie serves a composition of experts: one endpoint in front of many whole language models, on one machine.

Knows nothing about how: it only names the public face.
"""

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

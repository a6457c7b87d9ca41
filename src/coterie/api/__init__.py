"""The Python API: open a composition on a device, ask it, get answers.

    with Coterie.open("demo") as coterie:
        print(coterie.ask("What is 47 plus 85?").text)

Knows nothing about HTTP or the command line.
"""

from coterie.api.assemble import Options
from coterie.api.coterie import Coterie
from coterie.api.fleet import Fleet, opened_on
from coterie.api.serving import Serving
from coterie.api.status import Status
from coterie.api.types import Answer, Chunk, Message, Query
from coterie.checkpoint.constraint import Constraint

__all__ = [
    "Answer",
    "Chunk",
    "Constraint",
    "Coterie",
    "Fleet",
    "Message",
    "Options",
    "Query",
    "Serving",
    "Status",
    "opened_on",
]

"""`coterie route`: which expert would answer, how sure the router is, the runners-up, and why.

Only a router that asks a model needs a device; only experts that may be chosen for a prompt are opened. Knows nothing
about running them.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.api import Coterie, Options, Query
from coterie.api.routes import served_routes
from coterie.cli.options import CompositionArg, JsonOpt, KvOpt, KvTypeOpt, out, print_json, report_errors
from coterie.composition.composition import Composition, load_composition
from coterie.composition.router import Prompt, Route
from coterie.composition.routing import Routing
from coterie.core.errors import RequestError
from coterie.models.model import AUTO


@report_errors
def route(
    composition: CompositionArg,
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts; none reads lines from stdin.")] = None,
    kv: KvOpt = None,
    kv_type: KvTypeOpt = AUTO,
    json_: JsonOpt = False,
) -> None:
    """Print where each prompt would go, without running any expert.

    A prompt too long for the chosen expert goes to the next one with room, as in serving with the same --kv.
    """
    found = load_composition(composition)
    texts = prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise RequestError("prompt", "is empty", "give a question as an argument or on stdin")
    asks = found.router is not None and found.router.model is not None
    routes = list(zip(texts, (routes_of if asks else served_routes)(found, texts, kv, kv_type), strict=True))
    if json_:
        rows = [{"prompt": text, **found.to_dict()} for text, found in routes]
        print_json(rows[0] if len(rows) == 1 else rows)
        return
    out.print(_table(routes))


def routes_of(composition: Composition, texts: list[str], kv: int | None = None, kv_type: str = AUTO) -> list[Route]:
    """The router's decision for each text; models are opened only if the router asks one. Raises CoterieError."""
    if composition.router is None or composition.router.model is None:
        return routes_by(Routing(composition), texts)
    with Coterie(composition, Options(kv_bytes=kv, kv_type=kv_type)) as coterie:
        return [coterie.route(Query.text(text)) for text in texts]


def routes_by(routing: Routing, texts: list[str]) -> list[Route]:
    """The decision for each text, by a router that asks no model."""
    return [routing.route(Prompt(text))[0] for text in texts]


def _table(routes: list[tuple[str, Route]]) -> Table:
    table = Table("prompt", Column("expert", overflow="fold"), "confidence", "runners-up", "why")
    for text, found in routes:
        runners = ", ".join(f"{name} {share:.2f}" for name, share in found.runners_up[:3])
        name = f"{found.expert} (fallback)" if found.is_fallback else found.expert
        table.add_row(escape(text), name, f"{found.confidence:.2f}", runners, escape(found.reason))
    return table

"""The `coterie` command: names every subcommand.

Knows nothing about what they do.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from coterie import __version__
from coterie.cli.bench import app as bench
from coterie.cli.check import check
from coterie.cli.diff import diff
from coterie.cli.eval import evaluate
from coterie.cli.info import info
from coterie.cli.map import map_
from coterie.cli.paper import paper
from coterie.cli.plan import planning
from coterie.cli.quantize import quantize
from coterie.cli.route import route
from coterie.cli.run import run
from coterie.cli.serve import serve
from coterie.cli.simulate import simulation
from coterie.cli.trace import trace
from coterie.cli.validate import validate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve a composition of experts: one endpoint in front of many whole language models, on one machine.",
)
app.command("run")(run)
app.command("serve")(serve)
app.command("route")(route)
app.command("check")(check)
app.command("eval")(evaluate)
app.command("diff")(diff)
app.command("quantize")(quantize)
app.command("info")(info)
app.command("simulate")(simulation)
app.command("plan")(planning)
app.command("map")(map_)
app.command("trace")(trace)
app.command("validate")(validate)
app.command("paper")(paper)
app.add_typer(bench, name="bench")


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve a composition of experts."""


class _ToldToEnd(SystemExit):
    """SIGTERM has come."""


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """End as on Ctrl-C, so that what was made for a while is taken away: a bench's experts are gigabytes."""
    raise _ToldToEnd


def main() -> None:
    """Entry point of the `coterie` script."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        app()
    except _ToldToEnd:  # and then by the signal, as who sent it expects
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

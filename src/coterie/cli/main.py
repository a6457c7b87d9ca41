"""The `coterie` command: names every subcommand.

Knows nothing about what they do.
"""

from __future__ import annotations

import io
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from coterie import __version__

# Where each is, in the order of the help page. Its module is imported when it is asked for: all of them take a second.
COMMANDS = {
    "run": ("run", "run"),
    "serve": ("serve", "serve"),
    "ps": ("ps", "ps"),
    "route": ("route", "route"),
    "check": ("check", "check"),
    "eval": ("eval", "evaluate"),
    "diff": ("diff", "diff"),
    "merge": ("merge", "merge"),
    "delta": ("delta", "delta"),
    "quantize": ("quantize", "quantize"),
    "import": ("import_gguf", "import_"),
    "info": ("info", "info"),
    "simulate": ("simulate", "simulation"),
    "plan": ("plan", "planning"),
    "map": ("map", "map_"),
    "trace": ("trace", "trace"),
    "validate": ("validate", "validate"),
    "paper": ("paper", "paper"),
    "bench": ("bench", "app"),
}


class Commands(TyperGroup):
    """The subcommands, each made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        found = getattr(import_module(f"coterie.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            group = typer.main.get_group(found)
            group.name = cmd_name
            return group
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name)(found)
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve a composition of experts: one endpoint in front of many whole language models, on one machine.",
)


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


def _write_anywhere() -> None:
    """Let stdout show a question mark for what it cannot encode; stderr has an escape for it, and so may the user."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def main() -> None:
    """Entry point of the `coterie` script."""
    _write_anywhere()
    signal.signal(signal.SIGTERM, _leave)
    try:
        app()
    except _ToldToEnd:  # and then by the signal, as who sent it expects
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

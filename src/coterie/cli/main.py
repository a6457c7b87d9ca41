"""The `coterie` command: names every subcommand.

Knows nothing about what they do.
"""

from __future__ import annotations

import io
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from coterie import __version__

# What each does, in the order of the help page. A module is imported when its command is run or asked for its own page:
# all of them take a second.
COMMANDS = {
    "run": "Query a composition; each answer shows the expert, hit or switch, and the speed.",
    "serve": "Serve a composition over HTTP until interrupted.",
    "batch": "Answer a file of requests in OpenAI's batch format; run again, it goes on with those that are left.",
    "ps": "Show which experts a running server has where, and what they do.",
    "route": "Print where each prompt would go, without running any expert.",
    "init": "Write a composition file of a folder's experts, with the beginnings of a router; nothing is overwritten.",
    "check": "Check a composition and print where the bytes go.",
    "eval": "Score experts, router, composition and the single fallback model on held-out questions (exact last "
    "lines).",
    "diff": "Compare a device with the reference: first values and largest error of every stored buffer.",
    "merge": "Write an ordinary expert folder from a base and a LoRA adapter or a delta; changes are printed.",
    "delta": "Write a fine-tune as its packed difference from BASE; the sizes and what was lost are printed.",
    "quantize": "Write an ordinary expert folder whose matrices are packed in groups; the error per kind of tensor is "
    "printed.",
    "import": "Write an ordinary expert folder from a GGUF file (llama.cpp); what it adds to the weights' error is "
    "printed.",
    "compile": "Compile a GPU's kernels before it serves a composition, on a machine with or without a GPU.",
    "info": "Show a machine: its tiers and links, with the source of each number, and what nobody published.",
    "simulate": "Serve a workload in modelled time with the engine that serves for real; several machines side by "
    "side.",
    "plan": "Find the smallest number of each machine that meets an SLO under a load, and where the experts go.",
    "map": "Lay a model out in space: sections, units, times; draw a section or write its tile timeline.",
    "trace": "Show how busy each lane was; draw what ran when.",
    "validate": "Hold modelled times against measured ones: public data sets, and this machine's own benches.",
    "paper": "Compare the paper's tables and figures with its own arithmetic and with our models of its machines.",
    "bench": "Measure this machine; without a command, small versions of everything.",
}
# Module and function, where these are not called as the command is: the names are Python's, or of what they use.
_ELSEWHERE = {
    "eval": ("eval", "evaluate"),
    "import": ("import_gguf", "import_"),
    "compile": ("compile", "compile_"),
    "simulate": ("simulate", "simulation"),
    "plan": ("plan", "planning"),
    "map": ("map", "map_"),
    "bench": ("bench", "app"),
}


class _Later(TyperCommand):
    """A subcommand as the help page lists it, made when it is asked for more."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """That of the command itself, which then runs in it."""
        return command(str(self.name)).make_context(*args, **settings)


class Commands(TyperGroup):
    """The subcommands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: _Later(name, help=does) for name, does in COMMANDS.items()}


def command(name: str) -> Any:
    """The whole subcommand of a name, its module imported."""
    module, attribute = _ELSEWHERE.get(name, (name, name))
    found = getattr(import_module(f"coterie.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False)
    alone.command(name)(found)
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
    """SIGTERM has come, or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End as on Ctrl-C, so that what was made for a while is taken away: a bench's experts are gigabytes."""
    if number == signal.SIGHUP:  # a shell and then the kernel say it, and the second must not stop what takes away
        signal.signal(number, signal.SIG_IGN)
    raise _ToldToEnd(number)


def _take_signals() -> None:
    """End in order when told to, and when the terminal is gone, which `nohup` has ignored."""
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _leave)


def _write_anywhere() -> None:
    """Let stdout show a question mark for what it cannot encode; stderr has an escape for it, and so may the user."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def main() -> None:
    """Entry point of the `coterie` script."""
    _write_anywhere()
    _take_signals()
    try:
        app()
    except _ToldToEnd as told:  # and then by the signal, as who sent it expects
        with suppress(OSError):  # of a terminal that is gone
            sys.stdout.flush()
        signal.signal(told.number, signal.SIG_DFL)
        signal.raise_signal(told.number)
    except import_module("coterie.core.errors").CoterieError as error:  # when something ends: help needs no more
        typer.echo(f"coterie: {error}", err=True)
        raise SystemExit(2) from None

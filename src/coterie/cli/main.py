"""The `coterie` command: lists every subcommand and imports each on demand.

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

# The first line of each command's help, in the order of the help page. A command's module is imported only when it is
# run or its own help is shown: importing all of them takes a second.
COMMANDS = {
    "run": "Query a composition; each answer shows the expert, hit or switch, and the speed.",
    "serve": "Serve a composition over HTTP until interrupted.",
    "batch": "Answer a file of requests in OpenAI's batch format; a second run continues with unanswered requests.",
    "ps": "Show a running server's experts: where each is and what it does.",
    "route": "Print where each prompt would go, without running any expert.",
    "init": "Write a composition file of a folder's experts, with the beginnings of a router; nothing is overwritten.",
    "check": "Check a composition and print where the bytes go.",
    "eval": "Score experts, router, composition and the single fallback model on held-out questions (exact last "
    "lines).",
    "diff": "Compare a device with the reference: first values and largest error of every stored buffer.",
    "merge": "Write an ordinary expert folder from a base and a LoRA adapter or a delta; changes are printed.",
    "delta": "Write a fine-tune as its packed difference from BASE; its size and the error are printed.",
    "quantize": "Write an ordinary expert folder whose matrices are packed in groups; the error per kind of tensor is "
    "printed.",
    "import": "Write an ordinary expert folder from a GGUF file (llama.cpp); the error that this adds is printed.",
    "compile": "Compile a GPU's kernels before it serves a composition, on a machine with or without a GPU.",
    "info": "Show a machine: its tiers and links, with the source of each number, and which numbers are unpublished.",
    "simulate": "Simulate a workload in modelled time with the engine that serves for real; compares machines and "
    "policies.",
    "plan": "Find the smallest number of each machine that meets an SLO under a load, and where the experts go.",
    "map": "Map a model onto a dataflow machine: sections, units, times; draw a section or write its tile timeline.",
    "trace": "Show how busy each lane was; draw what ran when.",
    "validate": "Compare modelled times with measured ones: public data sets, and this machine's own benches.",
    "paper": "Compare the paper's tables and figures with its own arithmetic and with our models of its machines.",
    "bench": "Measure this machine; without a command, small versions of everything.",
}
# Module and function of commands for which these are not the command's name, which Python or an import already uses.
_MODULES = {
    "eval": ("eval", "evaluate"),
    "import": ("import_gguf", "import_"),
    "compile": ("compile", "compile_"),
    "simulate": ("simulate", "simulation"),
    "plan": ("plan", "planning"),
    "map": ("map", "map_"),
    "bench": ("bench", "app"),
}


class _LazyCommand(TyperCommand):
    """A subcommand as the help page lists it; the real one is imported when it is run."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """The context of the real command, which then runs in it."""
        return command(str(self.name)).make_context(*args, **settings)


class Commands(TyperGroup):
    """The subcommands, none of them imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: _LazyCommand(name, help=does) for name, does in COMMANDS.items()}


def command(name: str) -> Any:
    """Import the module of a subcommand and build it."""
    module, attribute = _MODULES.get(name, (name, name))
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


class _Terminated(SystemExit):
    """Raised on SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End as on Ctrl-C, so that temporary files are removed: a bench's experts are gigabytes."""
    if number == signal.SIGHUP:  # sent by the shell and again by the kernel: the second must not interrupt the cleanup
        signal.signal(number, signal.SIG_IGN)
    raise _Terminated(number)


def _take_signals() -> None:
    """End in order on SIGTERM, and on SIGHUP unless that is ignored, as under `nohup`."""
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _leave)


def _write_anywhere() -> None:
    """Let stdout print a question mark for characters it cannot encode, unless the user chose another error handler.

    stderr prints escapes by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def main() -> None:
    """Entry point of the `coterie` script."""
    _write_anywhere()
    _take_signals()
    try:
        app()
    except _Terminated as ended:  # then die by the signal, as its sender expects
        with suppress(OSError):  # the terminal may be gone
            sys.stdout.flush()
        signal.signal(ended.number, signal.SIG_DFL)
        signal.raise_signal(ended.number)
    except import_module("coterie.core.errors").CoterieError as error:  # imported lazily: --help does not need it
        typer.echo(f"coterie: {error}", err=True)
        raise SystemExit(2) from None

"""`coterie init`: writes a composition file for all experts of a folder. No weights are loaded.

Knows nothing about what such a file may contain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.opening import say_left_out
from coterie.cli.options import out, report_errors
from coterie.composition.begin import initial_file
from coterie.composition.composition import COMPOSITION_FILE, load_composition
from coterie.core.errors import NotFoundError, UsageError
from coterie.core.units import format_count
from coterie.engine.experts import open_experts, open_servable

PRINTED = Path("-")


@report_errors
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of checkpoints, or one of them.")],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="The file to write, which must not exist, or - to print it; the default is composition.toml in "
            "FOLDER.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a composition file of a folder's experts, with the beginnings of a router; nothing is overwritten.

    Experts that cannot be served are left out, and reported on stderr.
    """
    if not folder.is_dir():
        raise NotFoundError(str(folder), "is no folder", "give a folder of checkpoints")
    file = target or folder / COMPOSITION_FILE
    prints = file == PRINTED
    own = folder / COMPOSITION_FILE
    for there in (own, file):
        if (there == own or not prints) and (there.exists() or there.is_symlink()):
            raise UsageError(str(there), "is there already", "take it away first, or go on from it")
    if not prints and not file.parent.is_dir():
        raise NotFoundError(str(file), f"there is no folder {file.parent}", "make it first")
    found = load_composition(folder)
    found, models = open_servable(found) if found.skips_unservable else (found, open_experts(found, synthetic=False))
    answering = {name for name, model in models.items() if model.samples_tokens}
    text = initial_file(found, answering, None if prints else file.parent)
    say_left_out(found)
    if prints:
        typer.echo(text, nl=False)
        return
    with file.open("x", encoding="utf-8") as writing:
        writing.write(text)
    out.print(f"{file}: {format_count(len(found.experts), 'expert')}; coterie serve {file}", markup=False)

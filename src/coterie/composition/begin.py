"""Writes a first composition file for a folder: its experts, and commented-out settings to start from.

Knows nothing about what a checkpoint holds, or where the file is written.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from coterie.composition.composition import Composition
from coterie.composition.expert import Expert
from coterie.composition.toml import to_toml
from coterie.core.errors import CompositionError

HEAD = """\
# Lines that begin with "# " explain; those that begin with "#" alone are settings: remove the "#" to use one.
# docs/composition.md lists all of them.
"""
ROUTER = """
# Without a router, clients name the expert. With this one, a question to {name!r} goes to the expert whose examples are
# most similar, or to the fallback where none is similar. Uncomment these lines, and replace the examples below with
# five to twenty questions per expert, worded as your users ask. `coterie route FILE "QUESTION"` shows who would answer.
#[router]
#kind = "knn"
#fallback = {fallback}
"""


def initial_file(composition: Composition, answering: Collection[str], folder: Path | None) -> str:
    """The text of a composition file for a folder's experts. `answering`: names of the experts that generate text.

    Paths are relative to `folder`, the folder in which the file will lie; absolute if that is None. Raises
    CompositionError for a path that is not valid UTF-8.
    """
    name = composition.name
    while name in composition.names:  # a request names a composition and an expert in the same field
        name += "-experts"
    parts = [HEAD, "\n", to_toml({"name": name}), '#description = "what this composition is for"\n']
    fallback = next((one for one in composition.names if one in answering), "")
    if fallback:
        parts.append(ROUTER.format(name=name, fallback=_text(fallback)))
    for expert in composition.experts:
        parts += _expert(expert, expert.name in answering, folder)
    if composition.left_out:
        parts.append("\n# Left out, as they cannot be served:\n")
        parts += [f"# {who}: {' '.join(str(why).split())}\n" for who, why in composition.left_out.items()]
    whole = "".join(parts)
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        odd = whole[error.start - 20 : error.start].rpartition("\n")[2]
        fact = f"a path is not UTF-8, after {odd!r}, and a composition file is"
        raise CompositionError(composition.name, fact, "rename that file or folder") from error
    return whole


def _expert(expert: Expert, answers: bool, folder: Path | None) -> list[str]:
    said: dict[str, Any] = {"name": expert.name}
    said |= {
        key: _written(path, folder)
        for key, path in (("checkpoint", expert.checkpoint), ("base", expert.base))
        if path is not None
    }
    lines = [to_toml({"expert": [said]}), '#description = "what it is good at"\n']
    lines.append(f"#aliases = [{_text(f'{expert.name}:latest')}]  # other names by which clients ask for it\n")
    if answers:
        lines.append(f"#examples = [{_text(f'a question for {expert.name}')}, {_text(f'ask {expert.name}')}]\n")
        lines.append("#sampling = { temperature = 0.7, top_p = 0.9 }  # unless a request sets its own\n")
    return lines


def _text(value: str) -> str:
    return to_toml({"x": value}).removeprefix("x = ").rstrip("\n")


def _written(path: Path, folder: Path | None) -> str:
    """A path relative to `folder`; absolute where the relative one would begin with ~ and be read as a home folder."""
    if ".." in path.parts:  # .. after a symbolic link must be resolved, not cut off
        path = path.resolve()
    if folder is None:
        return str(path.absolute())
    relative = os.path.relpath(path.absolute(), folder.resolve())
    return str(path.absolute()) if relative.startswith("~") else relative

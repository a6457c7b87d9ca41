"""Begins a composition file: the experts of a folder as they are, and commented-out settings to go on from.

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
# What begins with "# " is said to you; what begins with "#" alone is a setting, which counts once its mark is off.
# docs/composition.md has all of them.
"""
ROUTER = """
# Without a router clients name their expert. With this one, questions that are asked of {name!r} go to the expert whose
# examples are most like them, and to the fallback where none is: take the marks off, and write examples (five to twenty
# an expert, as your users ask) in the place of those below. `coterie route FILE "A QUESTION"` tells who would answer.
#[router]
#kind = "knn"
#fallback = {fallback}
"""


def begun(composition: Composition, answering: Collection[str], beside: Path | None) -> str:
    """The text of a file that says what this composition of a folder is. `answering`: the experts that draw tokens.

    Paths are relative to the folder `beside`, in which the file will be; None: they are whole. Raises CompositionError
    where one cannot be written as text.
    """
    name = composition.name
    while name in composition.names:  # clients ask for both by the same field
        name += "-experts"
    parts = [HEAD, "\n", to_toml({"name": name}), '#description = "what all of it is for"\n']
    fallback = next((one for one in composition.names if one in answering), "")
    if fallback:
        parts.append(ROUTER.format(name=name, fallback=_text(fallback)))
    for expert in composition.experts:
        parts += _expert(expert, expert.name in answering, beside)
    if composition.left_out:
        parts.append("\n# Left out, as they cannot be served:\n")
        parts += [f"# {who}: {' '.join(str(why).split())}\n" for who, why in composition.left_out.items()]
    whole = "".join(parts)
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        odd = whole[error.start - 20 : error.start].rpartition("\n")[2]
        fact = f"a path is not UTF-8, after {odd!r}, and a composition file is"
        raise CompositionError(composition.name, fact, "rename what is called so") from error
    return whole


def _expert(expert: Expert, answers: bool, beside: Path | None) -> list[str]:
    said: dict[str, Any] = {"name": expert.name}
    said |= {
        key: _written(path, beside)
        for key, path in (("checkpoint", expert.checkpoint), ("base", expert.base))
        if path is not None
    }
    lines = [to_toml({"expert": [said]}), '#description = "what it is good at"\n']
    lines.append(f"#aliases = [{_text(f'{expert.name}:latest')}]  # other names by which clients ask for it\n")
    if answers:
        lines.append(f"#examples = [{_text(f'a question for {expert.name}')}, {_text(f'ask {expert.name}')}]\n")
        lines.append("#sampling = { temperature = 0.7, top_p = 0.9 }  # where a request does not say\n")
    return lines


def _text(value: str) -> str:
    return to_toml({"x": value}).removeprefix("x = ").rstrip("\n")


def _written(path: Path, beside: Path | None) -> str:
    """A path as a file in the folder `beside` has it; whole where it would begin with ~, which is a user's folder."""
    if ".." in path.parts:  # behind a link that leads elsewhere
        path = path.resolve()
    if beside is None:
        return str(path.absolute())
    relative = os.path.relpath(path.absolute(), beside.resolve())
    return str(path.absolute()) if relative.startswith("~") else relative

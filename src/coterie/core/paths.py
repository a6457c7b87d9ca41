"""Paths as people write them, where `~` and `~name` are users' folders, and names of files that ship with Coterie.

Knows nothing about what lies there.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from coterie.core.errors import NotFoundError


def shipped_names(package: str, folder: str, ending: str) -> tuple[str, ...]:
    """What files of a package's folder are called without this ending, sorted."""
    there = (entry.name for entry in (files(package) / folder).iterdir())
    return tuple(sorted(name.removesuffix(ending) for name in there if name.endswith(ending)))


def user_path(text: str | Path, where: str = "") -> Path:
    """The path that somebody gave, `~` expanded; `where` names it in errors. Raises NotFoundError for ~nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        fact = f"{str(text)[:60]!r} begins with the folder of a user whom this machine does not know"
        raise NotFoundError(where or "path", fact, "write the whole path") from error

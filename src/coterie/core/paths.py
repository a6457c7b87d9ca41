"""User-supplied paths (`~` and `~name` are expanded), and the names of files that ship with Coterie.

Knows nothing about what the files contain.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from coterie.core.errors import NotFoundError


def shipped_names(package: str, folder: str, ending: str) -> tuple[str, ...]:
    """Names, without `ending`, of the files in a package's folder that have it; sorted."""
    there = (entry.name for entry in (files(package) / folder).iterdir())
    return tuple(sorted(name.removesuffix(ending) for name in there if name.endswith(ending)))


def user_path(text: str | Path, where: str = "") -> Path:
    """Expand `~` in a path; `where` names it in errors. Raises NotFoundError for an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        fact = f"{str(text)[:60]!r} begins with the folder of a user whom this machine does not know"
        raise NotFoundError(where or "path", fact, "write the whole path") from error

"""Paths as people write them: `~` and `~name` are users' folders.

Knows nothing about what lies there.
"""

from __future__ import annotations

from pathlib import Path

from coterie.core.errors import NotFoundError


def user_path(text: str | Path, where: str = "") -> Path:
    """The path that somebody gave, `~` expanded; `where` names it in errors. Raises NotFoundError for ~nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        fact = f"{str(text)[:60]!r} begins with the folder of a user whom this machine does not know"
        raise NotFoundError(where or "path", fact, "write the whole path") from error

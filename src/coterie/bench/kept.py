"""Files that several benches of a session share: made by the first that needs one, in a folder that the session names.

    COTERIE_BENCH_KEEP=FOLDER     unset: nothing is kept, and each bench makes what it needs anew

A file is named by a digest of what it was made from, Coterie's own source included, and has that name only once it is
whole: what is found is valid, whoever was stopped before, or makes the same. Whoever names the folder removes it.
Knows nothing about what is in a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

FOLDER = "COTERIE_BENCH_KEEP"
BEGUN = ".begun"  # what the name of a file ends in that is not whole
_WHOLE = re.compile("[0-9a-f]{64}")
_SOURCE = Path(__file__).resolve().parents[1]


def kept(made_of: Mapping[str, Any]) -> Path | None:
    """Where what was made of this is, or would be kept; None where nothing is."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    told = json.dumps([_source_digest(), dict(made_of)], sort_keys=True)
    return Path(folder) / hashlib.sha256(told.encode()).hexdigest()


def kept_name(path: Path) -> str | None:
    """The name by which this file is kept, which says what it was made from; None where it is not kept."""
    folder, file = os.environ.get(FOLDER), path.resolve()
    return file.name if folder and file.parent == Path(folder).resolve() else None


def provide(path: Path, made_of: Mapping[str, Any], make: Callable[[Path], object]) -> None:
    """Have at `path` what `make` writes: a link to what is kept, made first if it is not there. Raises what it does."""
    whole = kept(made_of)
    if whole is None:
        make(path)
        return
    if not whole.exists():
        whole.parent.mkdir(parents=True, exist_ok=True)
        begun = whole.with_name(f"{whole.name}.{os.getpid()}{BEGUN}")  # two processes never write to one
        try:
            make(begun)
            begun.rename(whole)
        except BaseException:
            begun.unlink(missing_ok=True)
            raise
    path.symlink_to(whole.absolute())


def clean(folder: Path) -> None:
    """Remove what somebody had begun there who was stopped."""
    for found in folder.iterdir():
        if not _WHOLE.fullmatch(found.name):
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


@lru_cache(1)
def _source_digest() -> str:
    """Of all that may decide what is written."""
    found = hashlib.sha256()
    for file in sorted(_SOURCE.rglob("*.py")):
        found.update(f"{file.relative_to(_SOURCE)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return found.hexdigest()

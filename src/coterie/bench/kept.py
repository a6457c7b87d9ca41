"""A cache of generated files, shared between benches that run in sequence.

    COTERIE_BENCH_KEEP=FOLDER     unset: nothing is kept, and each bench generates its files anew

A file is named by a digest of what it is generated from, Coterie's source included, and gets that name only once it is
complete. So every file found is valid, even if a run was interrupted or another process writes the same. The caller
that sets the variable removes the folder.
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
PARTIAL = ".begun"  # suffix of incomplete files
_WHOLE = re.compile("[0-9a-f]{64}")
_SOURCE = Path(__file__).resolve().parents[1]


def kept_path(inputs: Mapping[str, Any]) -> Path | None:
    """The path of the kept file for these inputs, whether it exists or not; None if nothing is kept."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    key = json.dumps([_source_digest(), dict(inputs)], sort_keys=True)
    return Path(folder) / hashlib.sha256(key.encode()).hexdigest()


def kept_name(path: Path) -> str | None:
    """The name of a kept file, which identifies its contents; None for any other file."""
    folder, file = os.environ.get(FOLDER), path.resolve()
    return file.name if folder and file.parent == Path(folder).resolve() else None


def provide(path: Path, inputs: Mapping[str, Any], make: Callable[[Path], object]) -> None:
    """Provide at `path` what `make` writes; as a link to a kept file, if files are kept. Raises what `make` raises."""
    complete = kept_path(inputs)
    if complete is None:
        make(path)
        return
    if not complete.exists():
        complete.parent.mkdir(parents=True, exist_ok=True)
        partial = complete.with_name(f"{complete.name}.{os.getpid()}{PARTIAL}")  # one per process
        try:
            make(partial)
            partial.rename(complete)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    path.symlink_to(complete.absolute())


def clean(folder: Path) -> None:
    """Remove incomplete files, left by interrupted runs."""
    for found in folder.iterdir():
        if not _WHOLE.fullmatch(found.name):
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


@lru_cache(1)
def _source_digest() -> str:
    """The digest of Coterie's source, all of which may affect what is generated."""
    found = hashlib.sha256()
    for file in sorted(_SOURCE.rglob("*.py")):
        found.update(f"{file.relative_to(_SOURCE)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return found.hexdigest()

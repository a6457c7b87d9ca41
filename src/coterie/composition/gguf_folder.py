"""The GGUF files of a folder as the experts that they become: which there are, and what each is called.

    models/Llama-3.2-1B-Q8_0.gguf   models/big-00001-of-00003.gguf   ->   out/Llama-3.2-1B-Q8_0/   out/big/

Knows nothing about what is in a file, beyond that a later part goes with its first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.checkpoint.folder import GGUF
from coterie.composition.expert import is_expert_name, safe_name
from coterie.core.errors import UsageError
from coterie.core.paths import user_path

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class GgufFolder:
    """Files to import by the names of their experts, and the names of those that are there already."""

    target: Path
    files: Mapping[str, Path]
    there: tuple[str, ...]


def gguf_folder(source: str | Path, target: str | Path) -> GgufFolder:
    """Every GGUF file below a folder; a later part stands for a first one that is not there, and is refused with it.

    Raises UsageError where there is none, or two would have one name.
    """
    folder, out = user_path(source), user_path(target)
    found: dict[str, Path] = {}
    files = sorted(file for file in folder.rglob(f"*{GGUF}") if file.is_file())
    stands_for: dict[Path, Path] = {}
    for file in files:
        stands_for.setdefault(_first_part(file), file)
    for file in stands_for.values():
        part = _PART.fullmatch(file.stem)
        name = safe_name(part[1] if part else file.stem)
        if not is_expert_name(name):
            fact = f"its name gives {name!r}, which cannot be an expert's"
            raise UsageError(str(file), fact, f"import it alone: coterie import {file} {out}/NAME")
        if name in found:
            fact = f"would have the same name as {found[name]}, {name}"
            raise UsageError(str(file), fact, f"import it alone: coterie import {file} {out}/NAME")
        found[name] = file
    if not found:
        raise UsageError(str(folder), f"has no file of the kind *{GGUF}", "name a GGUF file or a folder of them")
    there = tuple(name for name in found if (out / name).exists())
    return GgufFolder(out, {name: file for name, file in found.items() if name not in there}, there)


def _first_part(file: Path) -> Path:
    part = _PART.fullmatch(file.stem)
    return file.with_name(f"{part[1]}-00001-of-{part[3]}{GGUF}") if part else file

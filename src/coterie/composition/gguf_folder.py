"""Finds the GGUF files below a folder, and names the expert that each is to become.

    models/Llama-3.2-1B-Q8_0.gguf   models/big-00001-of-00003.gguf   ->   out/Llama-3.2-1B-Q8_0/   out/big/
    models/a/x.gguf   models/b/x.gguf                                ->   out/a--x/   out/b--x/
    Ollama's store: manifests/.../llama3.2/1b -> blobs/sha256-...    ->   out/llama3.2-1b/

Knows nothing about what is in a file, beyond that the parts of a split file belong together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from coterie.checkpoint.files import read_object
from coterie.checkpoint.folder import GGUF, first_part, gguf_name
from coterie.composition.expert import expert_name, is_expert_name
from coterie.core.errors import UsageError
from coterie.core.paths import user_path

MANIFESTS, BLOBS = "manifests", "blobs"  # folders of Ollama's store
_WEIGHTS = "application/vnd.ollama.image.model"  # media type of the manifest's layer that is a GGUF file
_DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True)
class GgufFolder:
    """What an import of a folder is to do.

    `files` to import, by their experts' names; `existing`: names that exist in `target` already; `refused`: files that
    cannot be imported, and why.
    """

    target: Path
    files: Mapping[str, Path]
    existing: tuple[str, ...]
    refused: Mapping[Path, UsageError]


class _Named(NamedTuple):
    """A file, its expert's name, and the team that is prefixed to the name where several files share it."""

    name: str
    team: str
    file: Path


def gguf_folder(source: str | Path, target: str | Path) -> GgufFolder:
    """Every GGUF file below a folder, one per split file: its first part, or the next one there is if that is missing.

    Files that share a name are prefixed with their folders' names; those that still collide, or whose name is not
    valid, are refused. Raises UsageError if there is no GGUF file.
    """
    folder, out = user_path(source), user_path(target)
    refused: dict[Path, UsageError] = {}
    named = [*_below(folder), *(_ollamas(store, refused) if (store := ollamas_store(folder)) else ())]
    if not (named or refused):
        raise UsageError(str(folder), f"has no file of the kind *{GGUF}", "name a GGUF file or a folder of them")
    found: dict[str, Path] = {}
    often = Counter(name for name, _, _ in named)
    for called, team, file in named:
        name = called if often[called] == 1 else expert_name(f"{team}--{called}")
        remedy = f"import it alone: coterie import {quote(str(file))} {quote(str(out / 'NAME'))}"
        if not is_expert_name(name):
            refused[file] = UsageError(str(file), f"its name gives {name!r}, which cannot be an expert's", remedy)
        elif name in found:
            refused[file] = UsageError(str(file), f"would have the same name as {found[name]}, {name}", remedy)
        else:
            found[name] = file
    existing = tuple(name for name in found if (out / name).exists())
    return GgufFolder(out, {name: file for name, file in found.items() if name not in existing}, existing, refused)


def _below(folder: Path) -> Iterator[_Named]:
    """The files below a folder, one for each split file."""
    stands_for: dict[Path, Path] = {}
    # Unreadable files and broken links are kept: importing them reports what is wrong.
    for file in sorted(file for file in folder.rglob(f"*{GGUF}") if not os.path.isdir(file)):
        stands_for.setdefault(first_part(file), file)
    for file in stands_for.values():
        yield _Named(expert_name(gguf_name(file)), expert_name(file.parent.name), file)


def ollamas_store(folder: Path) -> Path | None:
    """Ollama's model store: this folder, or `models` in it (as in ~/.ollama); None if it is neither."""
    places = (folder, folder / "models")
    return next((place for place in places if (place / MANIFESTS).is_dir() and (place / BLOBS).is_dir()), None)


def _ollamas(store: Path, refused: dict[Path, UsageError]) -> Iterator[_Named]:
    """Ollama's models whose files exist, one per model and tag; tags of a model that share a file count once.

    manifests/HOST/NAMESPACE/MODEL/TAG is JSON: layers, each with a mediaType and a digest (sha256:...), which names
    its file; the last of several layers of weights counts. Damaged manifests are added to `refused`.

    Source: github.com/ollama/ollama, server/manifest.go, modelpath.go and images.go (GetModel).
    """
    tags = (file for file in (store / MANIFESTS).glob("*/*/*/*") if file.is_file() and not file.name.startswith("."))
    taken: set[tuple[Path, Path]] = set()
    for manifest in sorted(tags, key=lambda tag: (tag.parent, tag.name != _DEFAULT_TAG, tag.name)):
        model = manifest.parent
        try:
            layers = read_object(manifest).get("layers")
        except UsageError as error:
            refused[manifest] = error
            continue
        rows = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
        digests = [str(layer.get("digest")) for layer in rows if layer.get("mediaType") == _WEIGHTS]
        file = store / BLOBS / digests[-1].replace(":", "-") if digests else None
        if file is not None and file.is_file() and (model, file) not in taken:
            taken.add((model, file))
            tag = "" if manifest.name == _DEFAULT_TAG else f"-{manifest.name}"
            yield _Named(expert_name(f"{model.name}{tag}"), expert_name(model.parent.name), file)

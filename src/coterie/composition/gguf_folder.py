"""The GGUF files of a folder as the experts that they become: which there are, and what each is called.

    models/Llama-3.2-1B-Q8_0.gguf   models/big-00001-of-00003.gguf   ->   out/Llama-3.2-1B-Q8_0/   out/big/
    models/a/x.gguf   models/b/x.gguf                                ->   out/a--x/   out/b--x/
    Ollama's store: manifests/.../llama3.2/1b -> blobs/sha256-...    ->   out/llama3.2-1b/

Knows nothing about what is in a file, beyond that a later part goes with its first.
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

MANIFESTS, BLOBS = "manifests", "blobs"  # of Ollama's store
_WEIGHTS = "application/vnd.ollama.image.model"  # the layer of a manifest that is a GGUF file
_DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True)
class GgufFolder:
    """Files to import by the names of their experts, the names of those that are there already, and what is neither."""

    target: Path
    files: Mapping[str, Path]
    there: tuple[str, ...]
    refused: Mapping[Path, UsageError]


class _Named(NamedTuple):
    """A file, what it is called, and what stands before that where others are called the same."""

    name: str
    team: str
    file: Path


def gguf_folder(source: str | Path, target: str | Path) -> GgufFolder:
    """Every GGUF file below a folder; a later part stands for a first one that is not there, and is refused with it.

    Where several have one name, their folders' stand before it; what has the same name all the same, or none, is
    refused. Raises UsageError where there is no such file.
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
    there = tuple(name for name in found if (out / name).exists())
    return GgufFolder(out, {name: file for name, file in found.items() if name not in there}, there, refused)


def _below(folder: Path) -> Iterator[_Named]:
    """The files below a folder, but for later parts of those that are there."""
    stands_for: dict[Path, Path] = {}
    # What cannot be read or leads nowhere is a file too: importing it says so.
    for file in sorted(file for file in folder.rglob(f"*{GGUF}") if not os.path.isdir(file)):
        stands_for.setdefault(first_part(file), file)
    for file in stands_for.values():
        yield _Named(expert_name(gguf_name(file)), expert_name(file.parent.name), file)


def ollamas_store(folder: Path) -> Path | None:
    """Where Ollama keeps its models: this folder, or `models` in it (as ~/.ollama has it); None: not here."""
    places = (folder, folder / "models")
    return next((place for place in places if (place / MANIFESTS).is_dir() and (place / BLOBS).is_dir()), None)


def _ollamas(store: Path, refused: dict[Path, UsageError]) -> Iterator[_Named]:
    """Ollama's models whose files are there, by model and tag; tags of a model that mean one file are one.

    manifests/HOST/NAMESPACE/MODEL/TAG is JSON: layers, each with a mediaType and the digest (sha256:...) by which its
    file is called; of several layers of weights the last counts. Damaged manifests are `refused`.

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

"""The GGUF files of a folder as the experts that they become: which there are, and what each is called.

    models/Llama-3.2-1B-Q8_0.gguf   models/big-00001-of-00003.gguf   ->   out/Llama-3.2-1B-Q8_0/   out/big/
    models/a/x.gguf   models/b/x.gguf                                ->   out/a--x/   out/b--x/
    Ollama's store: manifests/.../llama3.2/1b -> blobs/sha256-...    ->   out/llama3.2-1b/

Knows nothing about what is in a file, beyond that a later part goes with its first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.checkpoint.files import read_object
from coterie.checkpoint.folder import GGUF, first_part, gguf_name
from coterie.composition.expert import is_expert_name, safe_name
from coterie.core.errors import UsageError
from coterie.core.paths import user_path

MANIFESTS, BLOBS = "manifests", "blobs"  # of Ollama's store
_WEIGHTS = "application/vnd.ollama.image.model"  # the layer of a manifest that is a GGUF file


@dataclass(frozen=True, slots=True)
class GgufFolder:
    """Files to import by the names of their experts, and the names of those that are there already."""

    target: Path
    files: Mapping[str, Path]
    there: tuple[str, ...]


def gguf_folder(source: str | Path, target: str | Path) -> GgufFolder:
    """Every GGUF file below a folder; a later part stands for a first one that is not there, and is refused with it.

    Where several have one name, their folders' stand before it. Raises UsageError where there is none, or two would
    have one name all the same, CheckpointError for a damaged manifest.
    """
    folder, out = user_path(source), user_path(target)
    found: dict[str, Path] = {}
    stands_for: dict[Path, Path] = {}
    for file in sorted(file for file in folder.rglob(f"*{GGUF}") if file.is_file()):
        stands_for.setdefault(first_part(file), file)
    named = [(gguf_name(file), file) for file in stands_for.values()]
    named += _ollamas(folder) if is_ollamas(folder) else []
    often = Counter(name for name, _ in named)
    for called, file in named:
        name = safe_name(called if often[called] == 1 else f"{safe_name(file.parent.name)}--{called}")
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


def is_ollamas(folder: Path) -> bool:
    """Whether a folder is where Ollama keeps its models."""
    return (folder / MANIFESTS).is_dir() and (folder / BLOBS).is_dir()


def _ollamas(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of Ollama's models that are there: a manifest is called by its tag, in a folder of the model's.

    Source: Ollama's docs/import.md and types of its manifests (schema version 2, media types). Raises CheckpointError.
    """
    for manifest in sorted(file for file in (folder / MANIFESTS).rglob("*") if file.is_file()):
        layers = read_object(manifest).get("layers")
        for layer in layers if isinstance(layers, list) else ():
            if isinstance(layer, dict) and layer.get("mediaType") == _WEIGHTS:
                file = folder / BLOBS / str(layer.get("digest")).replace(":", "-")
                tag = "" if manifest.name == "latest" else f"-{manifest.name}"
                if file.is_file():
                    yield f"{manifest.parent.name}{tag}", file

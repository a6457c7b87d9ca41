"""A Hugging Face checkpoint folder: config.json and the tensors of one or many safetensors files.

Knows nothing about architectures: models decide which tensors there should be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from coterie.checkpoint.files import read_object
from coterie.checkpoint.safetensors import TensorInfo, read_header
from coterie.core.errors import CheckpointError, shown
from coterie.core.paths import user_path
from coterie.core.text import first_few, safe_name

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"  # of a LoRA adapter, which is served on top of its base
DELTA_CONFIG = "delta_config.json"  # of a fine-tune stored as its difference from a base (models/fine_tunes/delta.py)
GGUF = ".gguf"  # llama.cpp's files, which must be imported before they can be served
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose headers have been read and checked: the config as in the file, and every tensor by name."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """Read config.json and every safetensors header. Raises CheckpointError or UnsupportedError."""
        folder = user_path(path)
        if not folder.is_dir():
            fact = "is a file" if folder.exists() else "does not exist"
            remedy = import_remedy(folder) if folder.suffix == GGUF and folder.exists() else "check the path"
            raise CheckpointError(str(folder), f"{fact}, where a checkpoint folder is expected", remedy)
        if not (folder / CONFIG).exists() and (files := gguf_files(folder)):
            raise CheckpointError(str(folder), f"has no {CONFIG}, but {brief(files)}", import_remedy(files[0]))
        if is_adapter(folder) or is_delta(folder):
            held = "a LoRA adapter" if is_adapter(folder) else "a fine-tune's difference from its base"
            remedy = "name it in a composition, with its base, or merge it into that with coterie merge"
            raise CheckpointError(str(folder), f"holds {held}, where a whole model is expected", remedy)
        config = read_object(folder / CONFIG)
        if (folder / SINGLE).exists():
            return Checkpoint(folder, config, read_header(folder / SINGLE))
        if (folder / INDEX).exists():
            return Checkpoint(folder, config, _read_sharded(folder))
        for name in (SINGLE, INDEX):
            if (folder / name).is_symlink():  # files in the Hugging Face cache are symlinks
                fact = f"points to {(folder / name).readlink()}, which does not exist"
                raise CheckpointError(str(folder / name), fact, "download the model again")
        fact = f"has no {SINGLE} and no {INDEX}{_others(folder)}"
        raise CheckpointError(str(folder), fact, "save it as safetensors")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model's weights."""
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).exists() for name in (SINGLE, INDEX))


def is_delta(folder: Path) -> bool:
    """Whether a folder holds a fine-tune stored as its difference from a base."""
    return (folder / DELTA_CONFIG).is_file() and not any((folder / name).exists() for name in (SINGLE, INDEX))


def fine_tune_kind(folder: Path) -> str:
    """For a folder that is served on top of a base, "an adapter" or "a delta"; empty for any other."""
    return "an adapter" if is_adapter(folder) else "a delta" if is_delta(folder) else ""


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files of a folder, by name; of a split file only its first part, if that is there.

    A folder that has been removed has none.
    """
    try:
        found = sorted(folder.glob(f"*{GGUF}"))
    except FileNotFoundError:
        return []
    return [file for file in found if first_part(file) == file or not first_part(file).exists()]


def gguf_name(file: Path) -> str:
    """A GGUF file's name, without the part number of a split file."""
    part = _PART.fullmatch(file.stem)
    return part[1] if part else file.stem


def first_part(file: Path) -> Path:
    """The first part of a split GGUF file; a file that is not split is its own."""
    part = _PART.fullmatch(file.stem)
    return file.with_name(f"{part[1]}-00001-of-{part[3]}{GGUF}") if part else file


def import_remedy(file: Path) -> str:
    """The remedy that tells how to import a GGUF file, with its name quoted for a shell."""
    return f"write an expert folder from it: coterie import {quote(str(file))} {safe_name(gguf_name(file)) or 'NAME'}"


def brief(files: Sequence[Path]) -> str:
    """The names of the first few files, for messages."""
    return first_few([file.name for file in files])


def _others(folder: Path) -> str:
    found = sorted(p.name for suffix in ("*.bin", "*.gguf", "*.pt", "*.safetensors") for p in folder.glob(suffix))
    return f" (but {', '.join(found[:3])})" if found else ""


def _read_sharded(folder: Path) -> dict[str, TensorInfo]:
    where = folder / INDEX
    weight_map = read_object(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(str(where), "has no weight_map", "download the index again")
    tensors: dict[str, TensorInfo] = {}
    foreign = [name for name in weight_map.values() if not isinstance(name, str) or Path(name).name != name]
    if foreign:
        fact = f"names {shown(foreign[0])}, which is not a file of this folder"
        raise CheckpointError(str(where), fact, "mend it")
    present = {file.name for file in folder.iterdir() if file.exists()}
    for file_name in dict.fromkeys(weight_map.values()):
        if file_name not in present:
            fact = f"names {file_name}, which does not exist"
            raise CheckpointError(str(where), fact, "download the missing file")
        for name, info in read_header(folder / file_name).items():
            if name in tensors:
                fact = f"{name} is in {Path(tensors[name].shard.path).name} and again in {file_name}"
                raise CheckpointError(str(where), fact, "save the checkpoint again")
            tensors[name] = info
    for name, file_name in weight_map.items():
        if name not in tensors or Path(tensors[name].shard.path).name != file_name:
            fact = f"says that {name} is in {file_name}, which does not hold it"
            raise CheckpointError(str(where), fact, "download the index and the shards again")
    return tensors

"""Writes an expert folder from a GGUF file: an ordinary folder, whose file can be read as a slab.

    metadata  ->  config.json, generation_config.json, tokenizer.json, tokenizer_config.json
    tensors   ->  model.safetensors in execution order, with rows and types as Coterie runs them

Memory is bounded: some rows of one tensor at a time. The result is opened as a check before the folder gets its name.
Knows nothing about GGUF (file.py), what its metadata means (config.py) or its weights (weights.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from coterie.checkpoint.files import read_object_if_present
from coterie.checkpoint.folder import SINGLE
from coterie.checkpoint.generation import GENERATION
from coterie.checkpoint.gguf_tokenizer import tokenizer_files
from coterie.checkpoint.sentence import Pooling, write_embedding
from coterie.checkpoint.tokenizer import TOKENIZER, Tokenizer
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.core.paths import user_path
from coterie.models.config import ModelConfig
from coterie.models.families import FAMILIES
from coterie.models.fine_tunes.merge import TOKENIZER_FILES
from coterie.models.gguf.config import config_of, generation_of
from coterie.models.gguf.encoders import DENSE, POOLING, head_of, pooling_of
from coterie.models.gguf.file import ARCHITECTURE, GgufFile, GgufTensor, open_gguf
from coterie.models.gguf.weights import KEEP, WEIGHTS, Source, Types, pieces, sources_of, types_of
from coterie.models.joined import joined_names
from coterie.models.model import open_model
from coterie.models.new_folder import Entry, free_path, new_folder, write_config, write_tensors
from coterie.models.packing import KEY, Packing
from coterie.models.packing_error import ErrorSums, KindError
from coterie.models.tensors import kind_of

_METADATA = {"format": "pt"}  # older versions of transformers require it


@dataclass(frozen=True, slots=True)
class ImportedKind:
    """One kind of tensor, over all layers: `found`: its types in the file; `lost`: the error that conversion added."""

    found: tuple[str, ...]
    lost: KindError


@dataclass(frozen=True, slots=True)
class Imported:
    """A written folder; `before_bytes`: size of the GGUF file; `num_weights` counts all weights, norms included."""

    folder: Path
    architecture: str
    packing: Packing | None
    before_bytes: int
    after_bytes: int
    num_weights: int
    kinds: tuple[ImportedKind, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A planned import. `samples_tokens`: as in Model; if not, vectors are pooled by `pooling`, if named."""

    file: GgufFile
    config: dict[str, Any]
    entries: Mapping[Entry, tuple[str, ...]]
    sources: Mapping[str, Source]
    types: Types
    samples_tokens: bool
    pooling: Pooling | None

    @property
    def num_tensors(self) -> int:
        """Number of tensors to write."""
        return len(self.entries)


def plan_import(source: str | Path, weights: str = KEEP) -> Job:
    """Open a GGUF file and plan its import; `weights` is one of WEIGHTS.

    Raises UsageError, CheckpointError for a damaged file, UnsupportedError naming what Coterie does not support.
    """
    if weights not in WEIGHTS:
        raise UsageError("--weights", f"{weights!r} is not known", f"use one of {', '.join(WEIGHTS)}")
    file = open_gguf(source)
    row, raw = config_of(file)
    config = ModelConfig.from_hf(raw | {"architectures": [FAMILIES[raw["model_type"]].causal_class]}, file.where)
    kind, head = (
        file.metadata.get(f"{file.metadata[ARCHITECTURE]}.{POOLING}"),
        head_of(file.tensors, config.family, file.where),
    )
    pooling = pooling_of(kind, head, file.where)
    samples_tokens = pooling is None and config.encoder is None
    sources = sources_of(file, row, config, samples_tokens)
    types = types_of(sources, weights)
    section = {KEY: types.packing.to_config()} if types.packing else {}
    raw["dtype"] = _declared(types)
    return Job(file, raw | section, dict(_entries(config, sources, types)), sources, types, samples_tokens, pooling)


def import_gguf(
    job: Job,
    target: str | Path,
    tokenizer: str | Path | None = None,
    tell: Callable[[int], None] | None = None,
) -> Imported:
    """Write the expert folder of a planned import; `tokenizer`, a folder or a tokenizer.json, replaces the file's own.

    `tell` is called with the number of tensors written so far. Raises UsageError if `target` exists, CheckpointError
    for numbers that are not finite and for a tokenizer that does not belong to the weights, CapacityError if the disk
    is full. A partly written folder is removed on any failure.
    """
    out = free_path(target)
    kinds: dict[tuple[str, DType], ErrorSums] = {}
    done = 0

    def write(file: BinaryIO, entry: Entry) -> None:
        nonlocal done
        names = job.entries[entry]
        dtype = job.types.by_name[names[0]]
        sums = kinds.setdefault((kind_of(entry.name), dtype), ErrorSums(dtype))
        sums.num_tensors += 1
        for name in names:
            for piece in pieces(job.sources[name], dtype, sums):
                file.write(piece)
        done += 1
        if tell:
            tell(done)

    size_bytes = sum(entry.dtype.tensor_bytes(entry.shape) for entry in job.entries)
    metadata = {KEY: json.dumps(job.config[KEY])} if KEY in job.config else _METADATA
    with new_folder(out, "the imported expert", size_bytes) as begun:
        if tokenizer is None:
            _write_tokenizer(job, begun)
        else:
            _copy_tokenizer(user_path(tokenizer), begun)
        if job.samples_tokens:
            _write_generation(job.file, begun)
        if job.pooling:
            _write_embedding(job, job.pooling, begun)
        write_config(begun, job.config)
        write_tensors(begun / SINGLE, tuple(job.entries), metadata, write)
        open_model(begun)
        after = (begun / SINGLE).stat().st_size
    found = tuple(ImportedKind(_found(job, *kind), sums.result(kind[0])) for kind, sums in kinds.items())
    num_weights = sum(prod(source.shape) for source in job.sources.values())
    architecture, before = job.file.metadata[ARCHITECTURE], job.file.size_bytes
    return Imported(out, architecture, job.types.packing, before, after, num_weights, found)


def _entries(
    config: ModelConfig, sources: Mapping[str, Source], types: Types
) -> Iterator[tuple[Entry, tuple[str, ...]]]:
    """The tensors to write, each with its weights: parts of a joined tensor stay joined, unless any is packed."""
    joined: dict[str, str] = {}
    for stored, ends in joined_names(config.names, config.num_layers):
        there = [end for end in ends if end in sources]
        if not any(types.by_name[end].is_packed for end in there):
            joined |= dict.fromkeys(there, stored)
    whole: dict[str, list[str]] = {}
    for name in sources:
        whole.setdefault(joined.get(name, name), []).append(name)
    for name, parts in whole.items():
        shape, dtype = sources[parts[0]].shape, types.by_name[parts[0]]
        rows = sum(sources[part].shape[0] for part in parts)
        yield Entry(name, *dtype.stored((rows, *shape[1:]))), tuple(parts)


def _declared(types: Types) -> str:
    """The type that config.json declares: the most frequent one among weights that are not packed."""
    plain = [dtype for dtype in types.by_name.values() if not dtype.is_packed]
    return {DType.F32: "float32", DType.F16: "float16"}.get(max(plain, key=plain.count), "bfloat16")


def _found(job: Job, kind: str, dtype: DType) -> tuple[str, ...]:
    types = {
        job.sources[name].tensor.type
        for entry, names in job.entries.items()
        if kind_of(entry.name) == kind and job.types.by_name[names[0]] is dtype
        for name in names
    }
    return tuple(sorted(types))


def _write_embedding(job: Job, pooling: Pooling, folder: Path) -> None:
    """Write the pooling and the dense layers of an embedding model, in float32. Raises CheckpointError."""
    dense = [found for name in DENSE if (found := job.file.tensors.get(name))]
    if odd := [found for found in dense if len(found.shape) != 2]:
        raise CheckpointError(odd[0].where, f"has shape {list(odd[0].shape)}, no matrix's", "download the file again")
    files = write_embedding(folder, pooling, job.config["hidden_size"], [found.shape for found in dense])
    for path, found in zip(files, dense, strict=True):
        entry = Entry("linear.weight", DType.F32, found.shape)
        write_tensors(path, (entry,), _METADATA, partial(_write_values, found))


def _write_values(tensor: GgufTensor, file: BinaryIO, _: Entry) -> None:
    file.write(tensor.values(slice(None)).tobytes())


def _write_tokenizer(job: Job, folder: Path) -> None:
    """Write the file's tokenizer. Raises as `tokenizer_files` does, with the file's name in the error."""
    metadata = {key: value for key, value in job.file.metadata.items() if key.startswith("tokenizer.")}
    family = FAMILIES[job.config["model_type"]]
    try:
        texts = tokenizer_files(metadata, encodes=family.encoder is not None)
    except (UnsupportedError, CheckpointError) as error:
        raise type(error)(f"{job.file.where}: {error.where}", error.fact, error.remedy) from error
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer.json, or a folder's tokenizer files and generation config.

    Raises CheckpointError if `source` is not a tokenizer, UsageError if it does not exist.
    """
    if not source.exists():
        raise UsageError(str(source), "does not exist", "check the path of --tokenizer")
    if source.is_file():
        shutil.copyfile(source, folder / TOKENIZER)
        try:
            Tokenizer.from_folder(folder)
        except CheckpointError as error:
            raise CheckpointError(str(source), error.fact, "name a tokenizer.json, or a folder that has one") from error
        return
    names = [name for name in (*TOKENIZER_FILES, GENERATION) if (source / name).is_file()]
    if TOKENIZER not in names:
        raise CheckpointError(str(source), f"has no {TOKENIZER}", "name a folder that has one, or the file itself")
    for name in names:
        shutil.copyfile(source / name, folder / name)


def _write_generation(file: GgufFile, folder: Path) -> None:
    """Write generation_config.json; a setting that came with the tokenizer wins over the file's own."""
    found = generation_of(file.metadata) | read_object_if_present(folder / GENERATION)
    if found:
        (folder / GENERATION).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

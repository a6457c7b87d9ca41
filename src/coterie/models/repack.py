"""Writes an expert folder with packed weights from one that compressed-tensors packed: the same numbers, elsewhere.

    theirs   weight_packed I32 [N, K / 8]: weight 8 w + i in bits 4 i of word w, plus 8
             weight_scale      [N, K / G]: one for each group of G weights, or one a row
    ours     rows of Q4 (core.packed), one bfloat16 scale for 32 weights: a larger group's is repeated

Only what loses nothing: whole numbers of 4 bits, symmetric, in groups of a multiple of 32, scales that bfloat16 holds.
Knows nothing about how rows are packed (core.packed) or a folder is written. Source: compressed-tensors' description of
its pack-quantized format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coterie.checkpoint.files import read_object_if_present
from coterie.checkpoint.folder import CONFIG, SINGLE, Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import PACKED, DType, to_f32
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.packed import LOW_Q4, packed_as_is
from coterie.core.paths import user_path
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.config import ModelConfig
from coterie.models.fields import Fields
from coterie.models.model import open_model
from coterie.models.new_folder import Entry, copy_others, free_path, new_folder, write_config, write_tensors
from coterie.models.packing import COMPRESSED_TENSORS, KEY, Packing
from coterie.models.quantize import PIECE_WEIGHTS, KindError, Quantized
from coterie.models.registry import weight_shapes
from coterie.models.tensors import IGNORED, kind_of, map_bytes

PACKING = Packing(4, None)
_DTYPE = DType.Q4
_GROUP = PACKED[_DTYPE][1]
_WORD_WEIGHTS = 8
_WANTED = {"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False}
_REMEDY = "quantise the unquantised checkpoint with coterie quantize"


@dataclass(frozen=True, slots=True)
class _Packed:
    """One matrix [rows, columns] of the model: `rows` of what is stored, from `first` on, and their scales."""

    words: TensorInfo
    scales: TensorInfo
    first: int
    shape: tuple[int, ...]


def is_repacked(source: str | Path) -> bool:
    """Whether a folder's config.json says that compressed-tensors packed it. Raises CheckpointError."""
    section = read_object_if_present(user_path(source) / CONFIG).get(KEY)
    return isinstance(section, dict) and section.get("quant_method") == COMPRESSED_TENSORS


def repack_folder(source: str | Path, target: str | Path) -> Quantized:
    """Repack the matrices of a folder that compressed-tensors packed; embedding and head stay as they are.

    Raises UsageError when `target` exists, UnsupportedError where repacking would lose something or more is quantised
    than weights, CheckpointError where files are damaged, CapacityError when the disk is full. Nothing is left of what
    fails.
    """
    out = free_path(target)
    stored = Checkpoint.open(source)
    where = str(stored.path / CONFIG)
    _check_section(Fields(stored.config, where), where)
    raw = {key: value for key, value in stored.config.items() if key != KEY} | {KEY: PACKING.to_config()}
    found = _found(stored, ModelConfig.from_hf(raw, where))
    entries = tuple(_entry(name, item) for name, item in found.items())

    def write(file: BinaryIO, entry: Entry) -> None:
        item = found[entry.name]
        if isinstance(item, _Packed):
            _write_rows(file, item)
        else:
            file.write(map_bytes(item).data)

    size_bytes = sum(entry.dtype.tensor_bytes(entry.shape) for entry in entries)
    with new_folder(out, "the repacked expert", size_bytes) as begun:
        copy_others(stored.path, begun)
        write_config(begun, raw)
        write_tensors(begun / SINGLE, entries, {KEY: json.dumps(PACKING.to_config())}, write)
        open_model(begun)
        after = (begun / SINGLE).stat().st_size
    before = sum(info.size_bytes for info in stored.tensors.values())
    return Quantized(out, PACKING, before, after, _kinds(found))


def _check_section(config: Fields, where: str) -> None:
    """Refuse what is not symmetric weights of 4 bits alone, all in one way."""
    section = config.section(KEY)
    groups = section.section("config_groups") if section else None
    if section is None or groups is None or section.get("format") != "pack-quantized":
        fact = f"{KEY} has format {section.get('format') if section else None!r}, which is not repacked"
        raise UnsupportedError(where, fact, _REMEDY)
    several = [groups.section(name) for name in groups.raw]
    weights = several[0].section("weights") if several[0] else None
    if len(several) != 1 or several[0] is None or weights is None:
        raise UnsupportedError(where, f"{KEY} has {len(several)} ways to quantise, where one is repacked", _REMEDY)
    for place, key in (
        (several[0], "input_activations"),
        (several[0], "output_activations"),
        (section, "kv_cache_scheme"),
    ):
        if place.get(key):
            raise UnsupportedError(place.where, f"{key} is there, so more is quantised than weights", _REMEDY)
    for key, wanted in _WANTED.items():
        if weights.get(key, wanted) != wanted:
            fact = f"{key} is {weights.get(key)!r}, and only {wanted!r} can be repacked without loss"
            raise UnsupportedError(weights.where, fact, _REMEDY)
    if weights.get("strategy") not in ("group", "channel"):
        fact = f"strategy is {weights.get('strategy')!r}, where 'group' or 'channel' is repacked"
        raise UnsupportedError(weights.where, fact, _REMEDY)


def _found(stored: Checkpoint, config: ModelConfig) -> dict[str, TensorInfo | _Packed]:
    """The model's tensors in order of first use. Raises CheckpointError and UnsupportedError."""
    left, shapes = dict(stored.tensors), weight_shapes(config)
    places = _places(stored.tensors, shapes, config)
    found: dict[str, TensorInfo | _Packed] = {}
    for name, shape in shapes.items():
        stem, first = places.get(name, (name.removesuffix(".weight"), 0))
        words = stored.tensors.get(f"{stem}.weight_packed")
        packs = len(shape) == 2 and name not in (EMBED_WEIGHT, HEAD_WEIGHT)
        if packs != (words is not None):
            fact = f"{name} is {'not ' if packs else ''}packed; the matrices of all layers must be, and nothing else"
            raise UnsupportedError(str(stored.path), fact, _REMEDY)
        if words is None:
            if name not in stored.tensors:
                raise CheckpointError(str(stored.path), f"tensor {name} {list(shape)} is missing", "get it again")
            found[name] = left.pop(name)
            continue
        found[name] = _packed(stored, stem, first, shape)
        for kind in ("packed", "scale", "shape"):
            left.pop(f"{stem}.weight_{kind}", None)
    leftovers = sorted(name for name in left if not IGNORED.fullmatch(name))
    if leftovers:
        fact = f"holds tensors that are not repacked: {', '.join(leftovers[:3])}"
        raise UnsupportedError(str(stored.path), fact, _REMEDY)
    return found


def _places(
    tensors: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> dict[str, tuple[str, int]]:
    """Where the parts of joined matrices are: what stores them, and their first row there."""
    places = {}
    for layer in range(config.num_layers):
        prefix = config.names.layer.format(layer)
        for joined, parts in config.names.joined.items():
            first = 0
            for name in (f"{prefix}{part}.weight" for part in parts):
                if f"{prefix}{joined}.weight_packed" in tensors:
                    places[name] = (prefix + joined, first)
                    first += shapes[name][0]
    return places


def _packed(stored: Checkpoint, stem: str, first: int, shape: tuple[int, ...]) -> _Packed:
    words, scales = stored.tensors[f"{stem}.weight_packed"], stored.tensors.get(f"{stem}.weight_scale")
    where, columns = f"{words.shard.path}: {stem}", shape[1]
    if scales is None:
        raise CheckpointError(where, "weight_scale is missing", "get the checkpoint again")
    wide = (-(-columns // _WORD_WEIGHTS),)
    if words.dtype is not DType.I32 or words.shape[1:] != wide or words.shape[0] < first + shape[0]:
        fact = f"weight_packed is {words.dtype.value} {list(words.shape)}, too little for rows of {columns} weights"
        raise CheckpointError(where, fact, "check that config.json belongs to these weights")
    if (
        len(scales.shape) != 2
        or scales.shape[0] != words.shape[0]
        or not scales.dtype.is_float
        or not scales.size_bytes
    ):
        fact = f"weight_scale is {scales.dtype.value} {list(scales.shape)} for {words.shape[0]} rows"
        raise CheckpointError(where, fact, "get the checkpoint again")
    group, rest = divmod(columns, scales.shape[1])
    if rest or group % _GROUP:
        fact = f"{scales.shape[1]} scales for {columns} weights, where groups of a multiple of {_GROUP} are repacked"
        raise UnsupportedError(where, fact, _REMEDY)
    return _Packed(words, scales, first, shape)


def _entry(name: str, item: TensorInfo | _Packed) -> Entry:
    if isinstance(item, _Packed):
        return Entry(name, DType.U8, (item.shape[0], _DTYPE.row_bytes(item.shape[1])))
    return Entry(name, item.dtype, item.shape)


def _write_rows(file: BinaryIO, item: _Packed) -> None:
    rows, columns = item.shape
    repeats = columns // item.scales.shape[1] // _GROUP
    step = max(1, PIECE_WEIGHTS // columns)
    for start in range(item.first, item.first + rows, step):
        here = slice(start, min(start + step, item.first + rows))
        bytes_NK = np.asarray(_matrix(item.words)[here]).view(np.uint8)
        codes_NK = np.stack([bytes_NK & 15, bytes_NK >> 4], axis=-1).reshape(len(bytes_NK), -1)[:, :columns]
        scales_NG = to_f32(np.asarray(_matrix(item.scales)[here]), item.scales.dtype)
        try:
            packed = packed_as_is(codes_NK.astype(np.int8) + LOW_Q4, np.repeat(scales_NG, repeats, axis=1), _DTYPE)
        except ValueError as error:
            fact = f"{error}, so that repacking would change weights"
            raise UnsupportedError(f"{item.scales.shard.path}: {item.scales.name}", fact, _REMEDY) from None
        file.write(packed.data)


def _matrix(info: TensorInfo) -> Any:
    return map_bytes(info).view(info.dtype.numpy).reshape(info.shape)


def _kinds(found: Mapping[str, TensorInfo | _Packed]) -> tuple[KindError, ...]:
    by_kind: dict[str, list[_Packed]] = {}
    for name, item in found.items():
        if isinstance(item, _Packed):
            by_kind.setdefault(kind_of(name), []).append(item)
    rows = []
    for kind, items in by_kind.items():
        weights = sum(item.shape[0] * item.shape[1] for item in items)
        size = sum(_DTYPE.tensor_bytes(item.shape) for item in items)
        rows.append(KindError(kind, _DTYPE, len(items), weights, 8 * size / weights, 0.0, 0.0))
    return tuple(rows)

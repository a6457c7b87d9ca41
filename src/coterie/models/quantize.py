"""Writes a quantised copy of an expert folder: an ordinary folder, whose file can be read as a slab.

Knows nothing about how weights are packed (core.packed), which are (packing.py), or how a folder is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coterie.checkpoint.folder import SINGLE
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CheckpointError, UsageError
from coterie.core.packed import encode
from coterie.models.model import Model, open_model
from coterie.models.new_folder import (
    Entry,
    copy_other_files,
    free_path,
    new_folder,
    row_pieces,
    write_config,
    write_tensors,
)
from coterie.models.packing import KEY, Packing, may_be_packed
from coterie.models.packing_error import ErrorSums, KindError
from coterie.models.tensors import kind_of, map_bytes


@dataclass(frozen=True, slots=True)
class Quantized:
    """A written folder: bytes of weights before and after, and the error per kind of tensor.

    `packing` None: its matrices are bfloat16. `num_weights` counts all weights, norms included. `notes`: remarks for
    the user.
    """

    folder: Path
    packing: Packing | None
    before_bytes: int
    after_bytes: int
    num_weights: int
    kinds: tuple[KindError, ...]
    notes: tuple[str, ...] = ()


def quantize_folder(source: str | Path, target: str | Path, packing: Packing | None) -> Quantized:
    """Pack the matrices of a checkpoint folder into a new folder; its other files are copied.

    `packing` None: matrices of other float types are rounded to bfloat16, as bfloat16 activations require.
    Raises UsageError if `target` exists, the source is packed already, or nothing is to be rounded; CheckpointError and
    UnsupportedError as `open_model` does; CapacityError if the disk is full. A partly written folder is removed.
    """
    out = free_path(target)
    model = open_model(source)
    if model.checkpoint.config.get(KEY):
        fact = "is quantised already, and quantising twice would lose twice"
        raise UsageError(str(source), fact, "start from the unquantised expert")
    shapes = {value.name: model.checkpoint.tensors[value.name].shape for value in model.graph.weights}
    if packing is not None:
        packing.check(shapes, str(source))
    types = {value.name: _type(model.checkpoint.tensors[value.name], packing) for value in model.graph.weights}
    if packing is None and not any(types.values()):
        raise UsageError(str(source), "has its matrices in bfloat16 already", "serve it as it is")
    with new_folder(out, "the quantised expert", model.layout.size_bytes) as begun:
        copy_other_files(model.checkpoint.path, begun)
        own = {} if model.head is None else {"architectures": [model.head.name]}
        section: dict[str, Any] = {"dtype": "bfloat16"} if packing is None else {KEY: packing.to_config()}
        write_config(begun, dict(model.checkpoint.config) | own | section)
        metadata = {"format": "pt"} if packing is None else {KEY: json.dumps(section[KEY])}
        sums = _write_weights(begun / SINGLE, model, types, metadata)
        after = (begun / SINGLE).stat().st_size
    before = sum(model.checkpoint.tensors[value.name].size_bytes for value in model.graph.weights)
    kinds = tuple(s.result(kind) for (kind, _), s in sums.items())
    return Quantized(out, packing, before, after, sum(map(prod, shapes.values())), kinds)


def _type(info: TensorInfo, packing: Packing | None) -> DType | None:
    """The new type of a weight, bfloat16 without a packing; None: unchanged."""
    if packing is not None:
        return packing.dtype_of(info.name, info.shape)
    return DType.BF16 if may_be_packed(info.name, info.shape) and info.dtype is not DType.BF16 else None


def _write_weights(
    path: Path, model: Model, packed: Mapping[str, DType | None], metadata: Mapping[str, str]
) -> dict[tuple[str, DType], ErrorSums]:
    """Write the tensors in order of first use, then a scoring head's, unchanged; returns errors by kind and type."""
    infos = {value.name: model.checkpoint.tensors[value.name] for value in model.graph.weights}
    head = {info.name: info for info in model.head.tensors} if model.head else {}
    infos, packed = infos | head, {**packed, **dict.fromkeys(head)}
    sums: dict[tuple[str, DType], ErrorSums] = {}

    def write(file: BinaryIO, entry: Entry) -> None:
        info, dtype = infos[entry.name], packed[entry.name]
        if dtype is None:
            file.write(map_bytes(info).data)
        else:
            _write_packed(file, info, dtype, sums.setdefault((kind_of(info.name), dtype), ErrorSums(dtype)))

    entries = [_entry(info, packed[name]) for name, info in infos.items()]
    write_tensors(path, entries, metadata, write)
    return sums


def _entry(info: TensorInfo, packed: DType | None) -> Entry:
    return Entry(info.name, *(packed or info.dtype).stored(info.shape))


def _write_packed(file: BinaryIO, info: TensorInfo, dtype: DType, sums: ErrorSums) -> None:
    bits = map_bytes(info).view(info.dtype.numpy).reshape(info.shape)
    sums.num_tensors += 1
    for rows in row_pieces(*info.shape):
        values = to_f32(np.asarray(bits[rows]), info.dtype)
        try:
            written, after = encode(values, dtype)
            if not np.isfinite(after).all():
                raise ValueError(f"a weight is infinite or not a number in {dtype.value}")
        except ValueError as error:
            raise CheckpointError(f"{info.shard.path}: {info.name}", str(error), "get the checkpoint again") from None
        file.write(written.data)
        sums.add(values, after, written.size)

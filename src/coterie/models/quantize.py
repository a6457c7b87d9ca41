"""Writes an expert folder with packed weights from one without: an ordinary folder, its file ready to be a slab.

Knows nothing about how weights are packed (core.packed) or which (packing.py), or how a folder is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from coterie.checkpoint.folder import SINGLE
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CheckpointError, UsageError
from coterie.core.packed import U8, pack, unpack
from coterie.models.lost import KindError, Sums
from coterie.models.model import Model, open_model
from coterie.models.new_folder import Entry, copy_others, free_path, new_folder, write_config, write_tensors
from coterie.models.packing import KEY, Packing
from coterie.models.tensors import kind_of, map_bytes

PIECE_WEIGHTS = 1 << 22  # what is in memory at once


@dataclass(frozen=True, slots=True)
class Quantized:
    """A written folder: bytes of weights before and after, and the error per kind of tensor.

    `packing` None: its matrices are bfloat16. `num_weights` are all, norms too. `notes`: what a person should know
    besides.
    """

    folder: Path
    packing: Packing | None
    before_bytes: int
    after_bytes: int
    num_weights: int
    kinds: tuple[KindError, ...]
    notes: tuple[str, ...] = ()


def quantize_folder(source: str | Path, target: str | Path, packing: Packing) -> Quantized:
    """Pack the matrices of a checkpoint folder into a new folder; all other files but weights are copied.

    Raises UsageError when `target` exists or the source is packed already, CheckpointError and UnsupportedError as
    `open_model` does, CapacityError when the disk is full. What was begun is removed on any failure.
    """
    out = free_path(target)
    model = open_model(source)
    if model.checkpoint.config.get(KEY):
        fact = "is quantised already, and quantising twice would lose twice"
        raise UsageError(str(source), fact, "start from the unquantised expert")
    shapes = {value.name: model.checkpoint.tensors[value.name].shape for value in model.graph.weights}
    packing.check(shapes, str(source))
    with new_folder(out, "the quantised expert", model.layout.size_bytes) as begun:
        copy_others(model.checkpoint.path, begun)
        own = {} if model.head is None else {"architectures": [model.head.name]}
        write_config(begun, dict(model.checkpoint.config) | own | {KEY: packing.to_config()})
        sums = _write_weights(begun / SINGLE, model, packing)
        after = (begun / SINGLE).stat().st_size
    before = sum(model.checkpoint.tensors[value.name].size_bytes for value in model.graph.weights)
    kinds = tuple(s.result(kind) for (kind, _), s in sums.items())
    return Quantized(out, packing, before, after, sum(map(prod, shapes.values())), kinds)


def _write_weights(path: Path, model: Model, packing: Packing) -> dict[tuple[str, DType], Sums]:
    """Tensors in order of first use, then those of a head that scores, as they are; the errors by kind and type."""
    infos = {value.name: model.checkpoint.tensors[value.name] for value in model.graph.weights}
    packed = {name: packing.dtype_of(name, info.shape) for name, info in infos.items()}
    head = {info.name: info for info in model.head.tensors} if model.head else {}
    infos, packed = infos | head, packed | dict.fromkeys(head)
    sums: dict[tuple[str, DType], Sums] = {}

    def write(file: BinaryIO, entry: Entry) -> None:
        info, dtype = infos[entry.name], packed[entry.name]
        if dtype is None:
            file.write(map_bytes(info).data)
        else:
            _write_packed(file, info, dtype, sums.setdefault((kind_of(info.name), dtype), Sums(dtype)))

    entries = [_entry(info, packed[name]) for name, info in infos.items()]
    write_tensors(path, entries, {KEY: json.dumps(packing.to_config())}, write)
    return sums


def _entry(info: TensorInfo, packed: DType | None) -> Entry:
    if packed is None:
        return Entry(info.name, info.dtype, info.shape)
    return Entry(info.name, DType.U8, (info.shape[0], packed.row_bytes(info.shape[1])))


def _write_packed(file: BinaryIO, info: TensorInfo, dtype: DType, sums: Sums) -> None:
    rows, columns = info.shape
    bits = map_bytes(info).view(info.dtype.numpy).reshape(info.shape)
    sums.num_tensors += 1
    step = max(1, PIECE_WEIGHTS // columns)
    for first in range(0, rows, step):
        values = to_f32(np.asarray(bits[first : first + step]), info.dtype)
        try:
            packed: U8 = pack(values, dtype)
        except ValueError as error:
            raise CheckpointError(f"{info.shard.path}: {info.name}", str(error), "get the checkpoint again") from None
        file.write(packed.data)
        sums.add(values, unpack(packed, dtype, columns), packed.size)

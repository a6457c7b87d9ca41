"""Writes an expert folder with packed weights from one without: an ordinary folder, its file ready to be a slab.

    header | embed | layers.0 ... | norm | head      one file in order of execution: a switch reads it straight on

Knows nothing about how weights are packed (core.packed) or which (packing.py).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coterie.checkpoint.folder import CONFIG, INDEX, SINGLE
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CapacityError, CheckpointError, UsageError
from coterie.core.packed import U8, pack, unpack
from coterie.core.paths import user_path
from coterie.models.model import Model, open_model
from coterie.models.packing import KEY, Packing
from coterie.models.tensors import map_bytes

HEADER_ALIGN_BYTES = 64  # a cache line
PIECE_WEIGHTS = 1 << 22  # what is in memory at once
_LEFT_OUT = (CONFIG, INDEX)
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True, slots=True)
class KindError:
    """What packing did to one kind of tensor, over all layers.

    `rms_error` and `max_error` are differences of weights, relative to the kind's root mean square; `bits` per weight
    count scales and padding.
    """

    kind: str
    dtype: DType
    num_tensors: int
    num_weights: int
    bits: float
    rms_error: float
    max_error: float


@dataclass(frozen=True, slots=True)
class Quantized:
    """A written folder: bytes of weights before and after, and the error per kind of tensor."""

    folder: Path
    packing: Packing
    before_bytes: int
    after_bytes: int
    kinds: tuple[KindError, ...]


@dataclass(slots=True)
class _Sums:
    """Running sums over the tensors of one kind."""

    dtype: DType
    num_tensors: int = 0
    num_weights: int = 0
    num_bytes: int = 0
    squares: float = 0.0
    lost: float = 0.0
    worst: float = 0.0

    def result(self, kind: str) -> KindError:
        rms = (self.squares / self.num_weights) ** 0.5 or 1.0  # of nothing but zeros, which lose nothing
        lost = (self.lost / self.num_weights) ** 0.5
        bits = 8 * self.num_bytes / self.num_weights
        return KindError(kind, self.dtype, self.num_tensors, self.num_weights, bits, lost / rms, self.worst / rms)


def quantize_folder(source: str | Path, target: str | Path, packing: Packing) -> Quantized:
    """Pack the matrices of a checkpoint folder into a new folder; all other files but weights are copied.

    Raises UsageError when `target` exists or the source is packed already, CheckpointError and UnsupportedError as
    `open_model` does, CapacityError when the disk is full. What was begun is removed on any failure.
    """
    out = user_path(target)
    if out.exists():
        raise UsageError(str(out), "exists already", "name a new folder, or remove it")
    model = open_model(source)
    if model.checkpoint.config.get(KEY):
        fact = "is quantised already, and quantising twice would lose twice"
        raise UsageError(str(source), fact, "start from the unquantised expert")
    begun = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        begun.mkdir()
        _copy_others(model.checkpoint.path, begun)
        config = dict(model.checkpoint.config) | {KEY: packing.to_config()}
        (begun / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        sums = _write_weights(begun / SINGLE, model, packing)
        after = (begun / SINGLE).stat().st_size
        begun.rename(out)
    except FileExistsError:
        raise UsageError(str(begun), "exists already", "remove what an earlier run left behind") from None
    except OSError as error:
        shutil.rmtree(begun, ignore_errors=True)
        raise _disk_error(error, out, model) from error
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    before = sum(model.checkpoint.tensors[value.name].size_bytes for value in model.graph.weights)
    return Quantized(out, packing, before, after, tuple(s.result(kind) for kind, s in sums.items()))


def _disk_error(error: OSError, out: Path, model: Model) -> CapacityError | UsageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(out.parent).free
        return CapacityError(str(out), "the quantised expert", model.layout.size_bytes, free, ("free some room",))
    return UsageError(str(out), f"cannot be written: {error.strerror}", "name a folder that you may write to")


def _copy_others(source: Path, target: Path) -> None:
    """Tokenizer, chat template, generation settings, licence: every file that is neither weights nor hidden."""
    for file in sorted(source.iterdir()):
        left_out = file.name in _LEFT_OUT or file.suffix in _WEIGHT_FILES or file.name.startswith(".")
        if file.is_file() and not left_out and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def _write_weights(path: Path, model: Model, packing: Packing) -> dict[str, _Sums]:
    """Header and tensors in order of first use, seen onto the disk; the errors by kind of tensor."""
    infos = [model.checkpoint.tensors[value.name] for value in model.graph.weights]
    packed = {info.name: packing.dtype_of(info.name, info.shape) for info in infos}
    sums: dict[str, _Sums] = {}
    with path.open("xb") as file:
        file.write(_header(infos, packed, packing))
        for info in infos:
            dtype = packed[info.name]
            if dtype is None:
                file.write(map_bytes(info).data)
            else:
                _write_packed(file, info, dtype, sums.setdefault(kind_of(info.name), _Sums(dtype)))
        file.flush()
        os.fsync(file.fileno())
    return sums


def kind_of(name: str) -> str:
    """A tensor's name without its layer: model.layers.3.mlp.up_proj.weight -> mlp.up_proj."""
    parts = [part for part in name.removesuffix(".weight").split(".") if part not in ("model", "layers")]
    return ".".join(part for part in parts if not part.isdigit())


def _header(infos: list[TensorInfo], packed: Mapping[str, DType | None], packing: Packing) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {KEY: json.dumps(packing.to_config())}}
    offset = 0
    for info in infos:
        dtype = packed[info.name]
        shape = (info.shape[0], dtype.row_bytes(info.shape[1])) if dtype else info.shape
        stored = DType.U8 if dtype else info.dtype
        end = offset + stored.tensor_bytes(shape)
        entries[info.name] = {"dtype": stored.value, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % HEADER_ALIGN_BYTES)
    return len(text).to_bytes(8, "little") + text


def _write_packed(file: BinaryIO, info: TensorInfo, dtype: DType, sums: _Sums) -> None:
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
        lost = np.abs(unpack(packed, dtype, columns) - values)
        sums.num_weights += values.size
        sums.num_bytes += packed.size
        sums.squares += float(np.einsum("nk,nk", values, values, dtype=np.float64))
        sums.lost += float(np.einsum("nk,nk", lost, lost, dtype=np.float64))
        sums.worst = max(sums.worst, float(lost.max(initial=0.0)))

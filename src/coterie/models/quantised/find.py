"""Finds a model's tensors in a checkpoint of another quantisation format: matrices by the format, others by name.

    stored   self_attn.qkv_proj.qweight  | rows of q | rows of k | rows of v |    one fused matrix, in some families
    parts    self_attn.q_proj.weight ...   a first row and a number of rows each

Knows nothing about any format, or about how the tensors are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.config import ModelConfig
from coterie.models.joined import joined_names
from coterie.models.quantised.matrix import AGAIN, UNQUANTISED, Matrix
from coterie.models.quantised.method import Method
from coterie.models.registry import weight_shapes
from coterie.models.stacked import usually_named
from coterie.models.tensors import IGNORED, equal_bytes, map_bytes, step_tensors

_OF_KV = re.compile(r".*\.(q|k|v|kv)_(scale|zero_point)")  # scales of a quantised KV cache
_OTHER = "check that config.json belongs to these weights"


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of the model, `shape` [rows, columns]: that many rows of a stored matrix, from `first` on."""

    matrix: Matrix
    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is stored: the module's name, the first row in it, and the module's total rows."""

    stem: str
    first: int
    rows: int


def find_tensors(stored: Checkpoint, config: ModelConfig, method: Method) -> dict[str, TensorInfo | Part]:
    """The model's tensors in order of first use: quantised ones as parts of matrices, the others as stored.

    Raises CheckpointError for tensors that are missing or do not fit, UnsupportedError for any left over.
    """
    stored = _read(stored, config)
    left, shapes = dict(stored.tensors), weight_shapes(config)
    joined = _joined(stored.tensors, shapes, config)
    found: dict[str, TensorInfo | Part] = {}
    for name, shape in shapes.items():
        stem, _, kind = name.rpartition(".")
        place = joined.get(name, _Place(stem, 0, shape[0]))
        module = place.stem if kind == "weight" else name
        quantised = method.find(stored.tensors, module, shape[1]) if len(shape) == 2 else None
        if quantised is None:
            found[name] = _plain(stored, name, f"{place.stem}.{kind}", place, shape)
            left.pop(f"{place.stem}.{kind}", None)
            continue
        if quantised.matrix.num_rows != place.rows:
            fact = f"has {quantised.matrix.num_rows} rows but config.json wants {place.rows}"
            raise CheckpointError(quantised.matrix.where, fact, _OTHER)
        found[name] = Part(quantised.matrix, place.first, shape)
        for used in quantised.used:
            left.pop(used, None)
    if not any(isinstance(item, Part) for item in found.values()):
        fact = f"no matrix is quantised, where config.json says that it is of {method.name!r}"
        raise CheckpointError(str(stored.path), fact, "take quantization_config out of config.json, or get it again")
    _refuse_leftovers(stored, left, method)
    return found


def _read(stored: Checkpoint, config: ModelConfig) -> Checkpoint:
    """The tensors that a step reads, under their usual names."""
    tensors = step_tensors(stored.tensors, config)
    if config.branches:
        tensors = usually_named(tensors, config.names.layer, config.branches)
    return replace(stored, tensors=tensors)


def _joined(
    tensors: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> dict[str, _Place]:
    """Where the parts of joined tensors are stored, weights and biases."""
    stems, places = {name.rpartition(".")[0] for name in tensors}, {}
    for joined, parts in joined_names(config.names, config.num_layers, (".weight", ".bias")):
        stem, names = joined.rpartition(".")[0], [name for name in parts if name in shapes]
        rows, first = sum(shapes[name][0] for name in names), 0
        for name in names if stem in stems else ():
            places[name] = _Place(stem, first, rows)
            first += shapes[name][0]
    return places


def _plain(stored: Checkpoint, name: str, whole: str, place: _Place, shape: tuple[int, ...]) -> TensorInfo:
    """A tensor that is stored as floats, or the tensor's rows of a joined one."""
    info = stored.tensors.get(whole)
    if info is None:
        raise CheckpointError(str(stored.path), f"tensor {name} {list(shape)} is missing", AGAIN)
    wanted = (place.rows, *shape[1:])
    if info.shape != wanted:
        fact = f"tensor {whole} has shape {list(info.shape)} but config.json wants {list(wanted)}"
        raise CheckpointError(str(stored.path), fact, _OTHER)
    if not info.dtype.is_float:
        fact = f"tensor {whole} has element type {info.dtype.value}, and config.json does not say what it means"
        raise UnsupportedError(str(stored.path), fact, UNQUANTISED)
    return info.rows(name, place.first, shape)


def _refuse_leftovers(stored: Checkpoint, left: Mapping[str, TensorInfo], method: Method) -> None:
    leftovers = [name for name, info in left.items() if not _means_nothing(stored, name, info, method)]
    if leftovers:
        fact = f"holds tensors that are not understood: {', '.join(sorted(leftovers)[:3])}"
        raise UnsupportedError(str(stored.path), fact, UNQUANTISED)


def _means_nothing(stored: Checkpoint, name: str, info: TensorInfo, method: Method) -> bool:
    """Whether a leftover is harmless.

    That is a zero bias, which AutoGPTQ adds to every module; a tied head stored again; a buffer that is never read; or
    scales of a quantised KV cache.
    """
    if name == HEAD_WEIGHT and EMBED_WEIGHT in stored.tensors:
        return equal_bytes(info, stored.tensors[EMBED_WEIGHT])
    if name.endswith(".bias"):
        return not np.asarray(map_bytes(info)).any()
    return IGNORED.fullmatch(name) is not None or bool(method.note and _OF_KV.fullmatch(name))

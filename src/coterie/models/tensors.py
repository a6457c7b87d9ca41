"""Compares a checkpoint's tensors with those that the graph needs: none may be missing, differ or be left over.

Knows nothing about what the tensors mean, except which leftovers change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.text import first_few, nearest_hint
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.config import ModelConfig
from coterie.models.packing import Packing

# Buffers that older versions of transformers stored; the frequencies come from config.json.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_COMPARE_BYTES = 1 << 24


def step_tensors(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, TensorInfo]:
    """The tensors that a step reads, without those for multi-token prediction (such as extra layers after the last).

    In a layer that reads the keys and values of another, its own key and value projections are left out as well.
    """
    extra = range(config.num_layers, config.num_layers + config.extra_layers)
    unread = [*config.names.unread, *(config.names.layer.format(layer) for layer in extra)]
    for layer in range(config.layered.first_shared, config.num_layers) if config.layered else ():
        prefix, names = config.names.layer.format(layer), config.names
        unread += [f"{prefix}{name}." for name in (names.k, names.v, names.k_norm)]
    return {name: info for name, info in tensors.items() if not name.startswith(tuple(unread))}


def check_tensors(
    where: Path,
    tensors: Mapping[str, TensorInfo],
    wanted: Mapping[str, tuple[int, ...]],
    packing: Packing | None = None,
) -> dict[str, DType]:
    """Element type of every wanted tensor. Raises CheckpointError naming tensor, found and wanted."""
    dtypes: dict[str, DType] = {}
    if packing:
        packing.check(wanted, str(where))
    for name, logical in wanted.items():
        info = tensors.get(name)
        if info is None:
            hint = nearest_hint(name, tensors)
            missing = sum(other not in tensors for other in wanted)
            fact = f"tensor {name} {list(logical)} is missing{hint}; {missing} of {len(wanted)} tensors are"
            raise CheckpointError(str(where), fact, "check that config.json belongs to these weights")
        packed = packing.dtype_of(name, logical) if packing else None
        shape = packed.stored(logical)[1] if packed else logical
        if info.shape != shape:
            fact = f"tensor {name} has shape {list(info.shape)} but config.json wants {list(shape)}"
            raise CheckpointError(str(where), fact, "check that config.json belongs to these weights")
        if packed and info.dtype is not DType.U8:
            fact = f"tensor {name} has element type {info.dtype.value} but config.json wants it packed, as U8"
            raise CheckpointError(str(where), fact, "check that config.json belongs to these weights")
        if not packed and not info.dtype.is_float:
            fact = f"tensor {name} has element type {info.dtype.value} but F32, F16 or BF16 is wanted"
            raise CheckpointError(str(where), fact, "save the weights unquantised")
        dtypes[name] = packed or info.dtype
    _refuse_leftovers(where, tensors, wanted)
    return dtypes


def _refuse_leftovers(where: Path, tensors: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]]) -> None:
    leftovers = [name for name in tensors if name not in wanted and not IGNORED.fullmatch(name)]
    if HEAD_WEIGHT in leftovers:
        leftovers.remove(HEAD_WEIGHT)
        if not equal_bytes(tensors[HEAD_WEIGHT], tensors[EMBED_WEIGHT]):
            fact = f"tie_word_embeddings is true but {HEAD_WEIGHT} differs from {EMBED_WEIGHT}"
            raise CheckpointError(str(where), fact, "set tie_word_embeddings to false in config.json")
    if leftovers:
        fact = f"holds tensors that its config.json does not use: {first_few(sorted(leftovers))}"
        raise UnsupportedError(str(where), fact, "leaving them out could change the answers")


def equal_bytes(left: TensorInfo, right: TensorInfo) -> bool:
    """Whether two tensors have the same type, shape and bytes; reads both, a piece at a time."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    a, b = map_bytes(left), map_bytes(right)
    pieces = range(0, left.size_bytes, _COMPARE_BYTES)
    return all(np.array_equal(a[i : i + _COMPARE_BYTES], b[i : i + _COMPARE_BYTES]) for i in pieces)


def map_bytes(info: TensorInfo) -> npt.NDArray[np.uint8]:
    """A tensor's bytes, memory-mapped. Raises CheckpointError if the file cannot be read any more."""
    try:
        return np.memmap(info.shard.path, np.uint8, "r", info.offset, (info.size_bytes,))
    except (OSError, ValueError) as error:
        raise CheckpointError(info.shard.path, f"cannot be read: {error}", "the file changed; open it again") from None


def kind_of(name: str) -> str:
    """A tensor's name without its layer: model.layers.3.mlp.up_proj.weight -> mlp.up_proj."""
    parts = [part for part in name.removesuffix(".weight").split(".") if part not in ("model", "layers")]
    return ".".join(part for part in parts if not part.isdigit())

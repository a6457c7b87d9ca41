"""compressed-tensors: integers, packed along rows or one per byte, or FP8, with a scale per group, row or block.

    pack-quantized    weight_packed I32 [N, K bits / 32]: code of weight [n, k] in word [n, k bits / 32], low bits first
    int-quantized     weight I8 [N, K]
    float-quantized   weight F8_E4M3 [N, K]
    weight_scale      [N, G], or one number, one per row or one per block
    weight_zero_point like it; packed along N if weights are

Packed codes are signed integers plus half of their range. Knows nothing about folders. Source: compressed-tensors' own
description of its formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CheckpointError
from coterie.models.fields import Fields
from coterie.models.quantised.float8 import ACTIVATIONS, Fp8, block_of
from coterie.models.quantised.gptq import declared_group
from coterie.models.quantised.matrix import (
    AGAIN,
    F32,
    FLOATS,
    I16,
    IntegerMatrix,
    bits_of,
    group_size,
    numbers_a_word,
    order_of,
    refused,
    unpacked,
    wanted,
)
from coterie.models.quantised.method import Found, Method

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_STRATEGIES = {"int": ("group", "channel", "tensor"), "float": ("block", "channel", "tensor")}
_KINDS = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
_ACTIVATION_TENSORS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
_ZEROS = (DType.I32, DType.I8, DType.I64)


def compressed_method(section: Fields) -> Method:
    """The method that finds the tensors of such a checkpoint. Raises UnsupportedError and CheckpointError."""
    scheme = _scheme(section)
    weights = scheme.section("weights")
    if weights is None:
        raise refused(scheme.where, "weights are not described")
    others = [
        key
        for place, key in (
            (scheme, "input_activations"),
            (scheme, "output_activations"),
            (section, "kv_cache_scheme"),
        )
        if place.get(key)
    ]
    kind, bits = str(weights.get("type", "int")), weights.count("num_bits")
    if kind not in _STRATEGIES or bits not in ((8,) if kind == "float" else (4, 8)):
        raise refused(weights.where, f"num_bits {bits} of type {kind!r} are not understood")
    strategy = weights.get("strategy")
    if strategy not in _STRATEGIES[kind]:
        understood = ", ".join(map(repr, _STRATEGIES[kind]))
        raise refused(weights.where, f"strategy is {strategy!r}, where {understood} are understood")
    if weights.flag("dynamic"):
        raise refused(weights.where, "dynamic is True, where weights have scales of their own")
    group = declared_group(weights) if strategy == "group" else -1
    symmetric = weights.get("symmetric", True) is not False
    block = block_of(weights, "block_structure") if strategy == "block" else None

    def find(tensors: Mapping[str, TensorInfo], stem: str, columns: int) -> Found | None:
        plain = tensors.get(f"{stem}.weight")
        used = tuple(f"{stem}.{name}" for name in (*_KINDS, *(_ACTIVATION_TENSORS if others else ())))
        if f"{stem}.weight_packed" in tensors or (plain is not None and plain.dtype is DType.I8):
            if not symmetric and f"{stem}.weight_zero_point" not in tensors:
                raise CheckpointError(f"{stem}.weight_zero_point", "is missing, and symmetric is false", AGAIN)
            return Found(_Integers(tensors, stem, columns, bits, group), used)
        if plain is not None and plain.dtype is DType.F8_E4M3:
            return Found(Fp8(tensors, stem, columns, "weight_scale", block), used)
        return None

    words = ACTIVATIONS
    if others != ["input_activations"]:
        words = f"it quantises {' and '.join(others)} as well, which is not done here" if others else ""
    return Method("compressed-tensors", bits if kind == "int" else None, find, words)


def _scheme(section: Fields) -> Fields:
    """The only quantisation scheme of a config; several are refused."""
    groups = section.section("config_groups")
    if section.get("format") not in _FORMATS or groups is None:
        fact = f"has format {section.get('format')!r}, where {', '.join(_FORMATS)} are understood"
        raise refused(section.where, fact)
    for key in ("sparsity_config", "transform_config"):
        found: Any = section.get(key)
        if found and not (isinstance(found, dict) and found.get("format") == "dense"):
            raise refused(section.where, f"{key} is there, so the weights are more than whole numbers and scales")
    several = [groups.section(name) for name in groups.raw]
    if len(several) != 1 or several[0] is None:
        raise refused(section.where, f"has {len(several)} ways to quantise, where one is understood")
    return several[0]


class _Integers(IntegerMatrix):
    def __init__(self, tensors: Mapping[str, TensorInfo], stem: str, columns: int, bits: int, declared: int) -> None:
        self._each = numbers_a_word(bits)
        self._bits, self._half = bits, np.int16(2 ** (bits - 1))
        self.min_code, self.max_code = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self._is_packed, self.num_columns = f"{stem}.weight_packed" in tensors, columns
        if self._is_packed:
            self._stored = wanted(tensors, f"{stem}.weight_packed", (DType.I32,), (-1, -(-columns // self._each)))
        else:
            self._stored = wanted(tensors, f"{stem}.weight", (DType.I8,), (-1, columns))
        self.num_rows = rows = self._stored.shape[0]
        self.where = f"{self._stored.shard.path}: {stem}"
        sizes: tuple[tuple[int, ...], ...] = ((rows, -1), (rows,), (1,), ()) if declared == -1 else ((rows, -1),)
        self._scales = wanted(tensors, f"{stem}.weight_scale", FLOATS, *sizes)
        self._groups = groups = self._scales.shape[1] if len(self._scales.shape) == 2 else 1
        self.group = group_size(self.where, groups, columns, declared)
        self.order = order_of(tensors.get(f"{stem}.weight_g_idx"), columns, groups, self.group)
        name, words, whole = f"{stem}.weight_zero_point", (-(-rows // self._each), groups), (rows, groups)
        zeros = tensors.get(name)
        self._packs_zeros = self._is_packed and zeros is not None and zeros.shape == words
        sizes = (words,) if self._packs_zeros else (whole, *(size for size in sizes if -1 not in size))
        dtypes = (DType.I32,) if self._packs_zeros else _ZEROS
        self._zeros = wanted(tensors, name, dtypes, *sizes) if zeros is not None else None
        if self._zeros is not None and not self._packs_zeros:
            stored = bits_of(self._zeros)
            if stored.min() < self.min_code or stored.max() > self.max_code:
                possible = f"{self.min_code} to {self.max_code} are possible"
                fact = f"has zeros from {stored.min()} to {stored.max()}, where {possible}"
                raise CheckpointError(f"{self.where}.weight_zero_point", fact, AGAIN)

    def codes(self, first: int, last: int) -> I16:
        """The stored codes of these rows."""
        stored = np.asarray(bits_of(self._stored)[first:last])
        if not self._is_packed:
            return stored.astype(np.int16)
        return unpacked(stored, self._bits).reshape(last - first, -1)[:, : self.num_columns] - self._half

    def zeros(self, first: int, last: int) -> I16:
        """The zero point of each group of these rows."""
        if self._zeros is None:
            return np.zeros((last - first, self._groups), np.int16)
        if not self._packs_zeros:
            return _by_row(bits_of(self._zeros), self.num_rows)[first:last].astype(np.int16)
        start = first // self._each
        columns = unpacked(bits_of(self._zeros)[start : -(-last // self._each)].T, self._bits)
        from_start = columns.reshape(len(columns), -1).T - self._half
        return from_start[first - start * self._each : last - start * self._each]

    def scales(self, first: int, last: int) -> F32:
        """The scale of each group of these rows."""
        bits = _by_row(bits_of(self._scales), self.num_rows)[first:last]
        return to_f32(np.ascontiguousarray(bits), self._scales.dtype)


def _by_row(bits: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Numbers broadcast to [rows, groups], from one per row or a single one."""
    return bits if bits.ndim == 2 and len(bits) == rows else np.broadcast_to(bits.reshape(-1, 1), (rows, 1))

"""Merges a packed difference into its base: writes an ordinary expert folder, as the fine-tune's was.

    difference   W_base + D in float32, rounded once to the base's type (config.json's type if the base is packed)
    whole        the delta's bytes
    neither      the base's bytes

Tensors have the names of the base's files: parts that are joined there (q, k and v of Phi-3) are joined again. Memory
is bounded: tensors are processed in pieces of rows. Knows nothing about how a difference is computed (delta_write.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from coterie.checkpoint.folder import DELTA_CONFIG, SINGLE, Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType
from coterie.core.paths import user_path
from coterie.core.shapes import fixed, trailing
from coterie.graph.ir import Value
from coterie.models.fine_tunes.delta import delta_name, open_delta
from coterie.models.fine_tunes.merged import F32, Merged, Sums, changed_kinds, check_opens, rounded
from coterie.models.model import Model, declared_dtype, open_model, weight_rows_f32
from coterie.models.new_folder import (
    PIECE_WEIGHTS,
    Entry,
    copy_other_files,
    free_path,
    new_folder,
    row_pieces,
    write_config,
    write_tensors,
)
from coterie.models.registry import weight_shapes


@dataclass(frozen=True, slots=True)
class _Plan:
    """The tensors to write; `weights`: tensor name -> the weights that make it up, in order."""

    base: Model
    expert: Model
    entries: tuple[Entry, ...]
    weights: Mapping[str, tuple[Value, ...]]


def check_delta(base: str | Path, delta: str | Path) -> None:
    """Raise what `merge_delta` would raise before it writes anything; reads only headers and a few bytes."""
    _plan(base, delta)


def merge_delta(base: str | Path, delta: str | Path, target: str | Path) -> Merged:
    """Add a packed difference to the weights of its base and write the sum as a new folder.

    The delta's files other than weights are copied. Raises UsageError if `target` exists, CheckpointError if the delta
    does not belong to the base or a sum is infinite in the base's type, CapacityError if the disk is full, and whatever
    `open_model` and `open_delta` raise. A partly written folder is removed on any failure.
    """
    out = free_path(target)
    plan = _plan(base, delta)
    sums: dict[str, Sums] = {}

    def write(file: BinaryIO, entry: Entry) -> None:
        for weight in plan.weights[entry.name]:
            for piece in _pieces(plan, weight, entry, sums):
                file.write(piece)

    size_bytes = sum(entry.dtype.tensor_bytes(entry.shape) for entry in plan.entries)
    folder = user_path(delta)
    with new_folder(out, "the merged expert", size_bytes) as begun:
        copy_other_files(folder, begun)
        (begun / DELTA_CONFIG).unlink()
        write_config(begun, plan.expert.checkpoint.config)
        write_tensors(begun / SINGLE, plan.entries, {"format": "pt"}, write)
        check_opens(begun, folder)
    untied = plan.base.config.tied_embeddings and not plan.expert.config.tied_embeddings
    return Merged(out, size_bytes, untied, plan.expert.config.vocab_size, changed_kinds(plan.entries, sums))


def _plan(base: str | Path, delta: str | Path) -> _Plan:
    under = open_model(base)
    expert = open_delta(under, delta)
    stored = sorted((info for info in Checkpoint.open(base).tensors.values() if info.size_bytes), key=_place)
    groups: dict[str, list[str]] = {}
    for weight in weight_shapes(expert.config):
        holder = _holder(under.checkpoint.tensors.get(weight), stored)
        groups.setdefault(holder.name if holder else weight, []).append(weight)
    by_name = {info.name: info for info in stored}
    entries, weights = [], {}
    for name, group in groups.items():
        if len(group) > 1:
            group.sort(key=lambda weight: _place(under.checkpoint.tensors[weight]))
        weights[name] = tuple(expert.graph.values[weight] for weight in group)
        entries.append(_entry(expert, name, by_name.get(name), weights[name]))
    return _Plan(under, expert, tuple(entries), weights)


def _place(info: TensorInfo) -> tuple[str, int]:
    return info.shard.path, info.offset


def _holder(weight: TensorInfo | None, stored: Sequence[TensorInfo]) -> TensorInfo | None:
    """The tensor of the base's files (sorted by place) that contains a weight; None if the base lacks the weight."""
    return weight and stored[bisect_right(stored, _place(weight), key=_place) - 1]


def _entry(expert: Model, name: str, stored: TensorInfo | None, weights: Sequence[Value]) -> Entry:
    """The tensor that these weights make up: of its shape in the base, unless rows were added."""
    found = {_dtype(expert, weight) for weight in weights}
    dtype = found.pop() if len(found) == 1 else DType.F32  # it represents all others exactly
    shapes = [fixed(weight.shape) for weight in weights]
    num_weights = sum(prod(shape) for shape in shapes)
    if stored is not None and prod(stored.shape) == num_weights:
        return Entry(name, dtype, stored.shape)
    return Entry(name, dtype, (sum(shape[0] for shape in shapes), *shapes[0][1:]))


def _dtype(expert: Model, weight: Value) -> DType:
    """The type in which a weight is stored; if the base packs it, the type that the fine-tune's config declares."""
    folder = str(expert.path)
    return declared_dtype(expert.checkpoint.config, folder) if weight.dtype.is_packed else weight.dtype


def _pieces(plan: _Plan, weight: Value, entry: Entry, sums: dict[str, Sums]) -> Iterator[bytes]:
    """The bytes of a weight, some rows at a time; changes from the base are added to `sums`."""
    expert, base = plan.expert, plan.base
    difference, was = expert.graph.values.get(delta_name(weight.name)), base.graph.values.get(weight.name)
    is_base = difference is None and expert.checkpoint.tensors[weight.name] == base.checkpoint.tensors.get(weight.name)
    counted = Sums() if is_base else sums.setdefault(entry.name, Sums())
    where = f"{expert.path}: {weight.name}"
    for rows in row_pieces(prod(fixed(weight.shape[:1])), trailing(weight.shape), PIECE_WEIGHTS):
        exact = weight_rows_f32(expert, weight, rows)
        before = weight_rows_f32(base, was, rows) if was else exact[:0]
        if difference:
            exact = exact + weight_rows_f32(expert, difference, rows)
        yield rounded(_matrix(before), _matrix(exact), entry.dtype, counted, where)


def _matrix(rows: F32) -> F32:
    return rows.reshape(len(rows), prod(rows.shape[1:]))

"""Writes a fine-tune as its difference from a base: an expert's folder that is served on top of that base.

    matrix of a product, or embedding table    differs: D = W - W_base in float32, packed      equal: left out
    all else (norms, biases, branches)         differs: whole, unchanged                       equal: left out

Memory is bounded: tensors are processed in pieces of rows. Knows nothing about how numbers are packed (core.packed), or
how a delta is read (delta.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coterie.checkpoint.folder import DELTA_CONFIG
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UsageError
from coterie.core.packed import F32, encode
from coterie.core.shapes import fixed, trailing
from coterie.graph.delta import summable
from coterie.graph.ir import Value
from coterie.models.blocks import TABLES
from coterie.models.fine_tunes.delta import (
    BASE_KEY,
    DELTA_WEIGHTS,
    FINGERPRINT_KEY,
    TYPE,
    VERSION,
    check_alone,
    delta_name,
)
from coterie.models.fingerprint import fingerprint
from coterie.models.model import Model, open_model, weight_rows_f32
from coterie.models.new_folder import (
    Entry,
    copy_other_files,
    free_path,
    new_folder,
    row_pieces,
    write_config,
    write_tensors,
)
from coterie.models.packing import KEY, Packing
from coterie.models.packing_error import ErrorSums
from coterie.models.tensors import kind_of, map_bytes

FAR = 0.5  # a larger relative difference is hardly a fine-tune's
_KIN = ("family", "num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
_HF = {"family": "model_type", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
_HF |= {"num_kv_heads": "num_key_value_heads"}


@dataclass(frozen=True, slots=True)
class KindDelta:
    """The result for one kind of tensor, over all layers in which it is stored as this type; None: whole.

    Root mean squares: `change`: the difference, relative to the fine-tune's weights; `lost`: the packing error relative
    to these; `lost_of_change`: the same relative to the difference. All three are 0 for whole tensors. `bits` per
    weight include scales and padding.
    """

    kind: str
    dtype: DType | None
    num_tensors: int
    num_weights: int
    bits: float
    change: float = 0.0
    lost: float = 0.0
    lost_of_change: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """A written folder: bytes of the fine-tune's weights and of the delta's, and the result by kind.

    `num_weights` counts all weights of the fine-tune; `num_equal`: tensors equal to the base's. `notes`: remarks for
    the user.
    """

    folder: Path
    packing: Packing
    before_bytes: int
    after_bytes: int
    num_weights: int
    num_equal: int
    kinds: tuple[KindDelta, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Kind:
    """Running sums over the tensors of one kind and type."""

    kind: str
    dtype: DType | None
    num_tensors: int = 0
    num_weights: int = 0
    num_bytes: int = 0
    of_expert: ErrorSums | None = None
    of_difference: ErrorSums | None = None

    def result(self) -> KindDelta:
        bits = 8 * self.num_bytes / self.num_weights
        found = KindDelta(self.kind, self.dtype, self.num_tensors, self.num_weights, bits)
        if self.of_expert is None or self.of_difference is None:
            return found
        change = (self.of_difference.squares / (self.of_expert.squares or 1.0)) ** 0.5
        lost, of_change = (sums.result(self.kind).rms_error for sums in (self.of_expert, self.of_difference))
        return replace(found, change=change, lost=lost, lost_of_change=of_change)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The tensors to store, in order of first use: the packed type of a difference, or None for a whole tensor."""

    base: Model
    expert: Model
    stored: Mapping[str, DType | None]

    def value(self, name: str) -> Value:
        return self.expert.graph.values[name]


def write_delta(base: str | Path, expert: str | Path, target: str | Path, packing: Packing) -> Delta:
    """Write a fine-tune's difference from a base as a new folder; the fine-tune's files other than weights are copied.

    Raises UsageError if `target` exists or the fine-tune is quantised, CheckpointError if the two do not belong
    together or are equal, whatever `open_model` raises, and CapacityError if the disk is full. A partly written folder
    is removed on any failure.
    """
    out = free_path(target)
    plan = _plan(open_model(base), open_model(expert), packing)
    tensors = plan.expert.checkpoint.tensors
    sizes = {value.name: tensors[value.name].size_bytes for value in plan.expert.graph.weights}
    with new_folder(out, "the delta", sum(sizes[name] for name in plan.stored)) as begun:
        copy_other_files(plan.expert.checkpoint.path, begun)
        write_config(begun, plan.expert.checkpoint.config)
        (begun / DELTA_CONFIG).write_text(json.dumps(_config(plan, packing), indent=2) + "\n", encoding="utf-8")
        kinds = _write_weights(begun / DELTA_WEIGHTS, plan)
        after = (begun / DELTA_WEIGHTS).stat().st_size
    rows = tuple(kind.result() for kind in kinds)
    counts = sum(prod(tensors[name].shape) for name in sizes), len(sizes) - len(plan.stored)
    return Delta(out, packing, sum(sizes.values()), after, *counts, rows, tuple(_notes(plan, rows)))


def _config(plan: _Plan, packing: Packing) -> dict[str, Any]:
    return {
        "delta_type": TYPE,
        "version": VERSION,
        BASE_KEY: str(plan.base.checkpoint.path.resolve()),
        FINGERPRINT_KEY: fingerprint(plan.base),
        KEY: packing.to_config(),
    }


def _plan(base: Model, expert: Model, packing: Packing) -> _Plan:
    """Decide which tensors differ, and how they are stored. Raises as `write_delta` does."""
    _check_kin(base, expert)
    sums, stored = summable(expert.graph), dict[str, DType | None]()
    for value in expert.graph.weights:
        if _equal(base, expert, value):
            continue
        in_base = base.graph.values.get(value.name)
        subtracts = in_base is not None and in_base.shape == value.shape and value.name in sums
        stored[value.name] = packing.dtype_of(value.name, fixed(value.shape)) if subtracts else None
    if not stored:
        fact = f"has the weights of {base.path}, to the last bit"
        raise CheckpointError(str(expert.path), fact, "serve the base under both names")
    return _Plan(base, expert, stored)


def _check_kin(base: Model, expert: Model) -> None:
    """Raise an error if the two cannot be a base and its fine-tune."""
    where = str(expert.path)
    for model in (base, expert):
        check_alone(model, model.checkpoint.path)
    if expert.checkpoint.config.get(KEY):
        fact = "is quantised, and a difference is taken of the weights that were trained"
        raise UsageError(where, fact, "start from the unquantised fine-tune")
    for field in _KIN:
        ours, its = getattr(expert.config, field), getattr(base.config, field)
        if ours != its:
            fact = f"{_HF.get(field, field)} is {ours}, but {its} in the base {base.path}"
            raise CheckpointError(where, fact, "give the base from which this model was fine-tuned")
    for value in expert.graph.weights:
        its_value = base.graph.values.get(value.name)
        if its_value is not None and its_value.shape != value.shape and value.name not in TABLES:
            fact = f"{value.name} is {list(value.shape)}, but {list(its_value.shape)} in the base {base.path}"
            raise CheckpointError(where, fact, "give the base from which this model was fine-tuned")


def _equal(base: Model, expert: Model, value: Value) -> bool:
    """Whether a weight has the same values as the base's, whatever its type."""
    its = base.graph.values.get(value.name)
    if its is None or its.shape != value.shape:
        return False
    return all(np.array_equal(ours, theirs) for ours, theirs in _pairs(base, expert, value))


def _pairs(base: Model, expert: Model, value: Value) -> Iterator[tuple[F32, F32]]:
    """Pieces of a weight as float32: (fine-tune, base)."""
    for piece in row_pieces(prod(fixed(value.shape[:1])), trailing(value.shape)):
        yield weight_rows_f32(expert, value, piece), weight_rows_f32(base, base.graph.values[value.name], piece)


def _write_weights(path: Path, plan: _Plan) -> list[_Kind]:
    kinds: dict[tuple[str, DType | None], _Kind] = {}
    by_entry: dict[str, str] = {}
    entries = []
    for name, dtype in plan.stored.items():
        info = plan.expert.checkpoint.tensors[name]
        stored = info.dtype, info.shape
        entry = Entry(name, *stored) if dtype is None else Entry(delta_name(name), *dtype.stored(info.shape))
        entries.append(entry)
        by_entry[entry.name] = name

    def write(file: BinaryIO, entry: Entry) -> None:
        name = by_entry[entry.name]
        dtype, key = plan.stored[name], kind_of(name)
        kind = kinds.setdefault((key, dtype), _Kind(key, dtype))
        kind.num_tensors += 1
        kind.num_weights += prod(fixed(plan.value(name).shape))
        kind.num_bytes += entry.dtype.tensor_bytes(entry.shape)
        if dtype is None:
            file.write(map_bytes(plan.expert.checkpoint.tensors[name]).data)
        else:
            _write_packed(file, plan, name, dtype, kind)

    write_tensors(path, entries, {"format": "pt"}, write)
    return list(kinds.values())


def _write_packed(file: BinaryIO, plan: _Plan, name: str, dtype: DType, kind: _Kind) -> None:
    kind.of_expert = kind.of_expert or ErrorSums(dtype)
    kind.of_difference = kind.of_difference or ErrorSums(dtype)
    for ours, its in _pairs(plan.base, plan.expert, plan.value(name)):
        difference = ours - its
        try:
            packed, worth = encode(difference, dtype)
        except ValueError as error:
            raise CheckpointError(f"{plan.expert.path}: {name}", str(error), "get the checkpoint again") from None
        file.write(packed.data)
        kind.of_difference.add(difference, worth, packed.size)
        kind.of_expert.add(ours, its + worth, packed.size)


def _notes(plan: _Plan, kinds: tuple[KindDelta, ...]) -> Iterator[str]:
    worst = max(kinds, key=lambda kind: kind.change)
    if worst.change > FAR:
        yield f"{worst.kind} differs by {worst.change:.0%} of its weights: was this model fine-tuned from that base?"
    ours, its = plan.expert.config.vocab_size, plan.base.config.vocab_size
    if ours != its:
        yield f"the vocabulary is {ours}, the base's {its}: what has a row for each token is whole"

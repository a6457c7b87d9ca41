"""An expert that is a base plus a fine-tune's difference from it: the base's graph, in which some weights are sums.

    base    W unchanged                   its tensors stay in the base's files, shared by all its deltas
    delta   model...q_proj.delta          D of y = x W^T + x D^T, packed as U8 rows (core.packed)
            model.norm.weight             a whole tensor, which replaces the base's or has no counterpart in it

    delta_config.json   {"delta_type": "coterie", "version": 1, "base_model_name_or_path": ..., "base_fingerprint": ...,
                         "quantization_config": the types of the packed differences, by the weights' names}

config.json is the fine-tune's own. Knows nothing about how a difference is computed (delta_write.py), or where bytes
go in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import read_object
from coterie.checkpoint.folder import CONFIG, DELTA_CONFIG, Checkpoint
from coterie.checkpoint.generation import NOT_ADVISED, advised, end_ids
from coterie.checkpoint.layout import Layout
from coterie.checkpoint.place import place
from coterie.checkpoint.safetensors import TensorInfo, read_header
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.paths import user_path
from coterie.core.shapes import fixed
from coterie.graph.delta import summable, with_differences
from coterie.graph.ir import Graph, Kind, Value
from coterie.models.architecture import Architecture, architecture, shapes_of, shared
from coterie.models.config import ModelConfig
from coterie.models.fields import Fields
from coterie.models.fingerprint import fingerprint
from coterie.models.model import Model, check_vocabulary
from coterie.models.packing import Packing, packing_of
from coterie.models.scores import refuse_head

DELTA_WEIGHTS = "delta.safetensors"
TYPE, VERSION = "coterie", 1
BASE_KEY, FINGERPRINT_KEY = "base_model_name_or_path", "base_fingerprint"
_SUFFIX = ".delta"
_AGAIN = "write it again: coterie delta BASE EXPERT OUT"


@dataclass(frozen=True, slots=True)
class _Parts:
    """The contents of a delta's file: packed differences by the weight's name, and whole tensors by their own."""

    differences: Mapping[str, tuple[TensorInfo, DType]]
    wholes: Mapping[str, TensorInfo]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return dict(self.wholes) | {info.name: info for info, _ in self.differences.values()}


def delta_name(weight: str) -> str:
    """The name of a weight's difference in the file."""
    return weight.removesuffix(".weight") + _SUFFIX


def open_delta(base: Model, path: str | Path, name: str = "") -> Model:
    """Open a delta's folder as an expert on top of an open base; no weights are read except a few bytes of the base.

    Its layout has only the delta's tensors. Raises CheckpointError if files are missing, damaged or do not belong to
    the base, UnsupportedError for anything unsupported.
    """
    folder = user_path(path)
    fields = Fields(read_object(folder / DELTA_CONFIG), str(folder / DELTA_CONFIG))
    packing = _check(base, fields)
    raw = read_object(folder / CONFIG)
    config = ModelConfig.from_hf(raw, str(folder / CONFIG))
    plain = shapes_of(config)
    if not (folder / DELTA_WEIGHTS).exists():
        raise CheckpointError(str(folder), f"has no {DELTA_WEIGHTS}", _AGAIN)
    of_base = {value.name: value.dtype for value in base.graph.weights}
    tensors = read_header(folder / DELTA_WEIGHTS)
    wholes = {weight: info for weight, info in tensors.items() if weight in plain}
    alone = architecture(config, _dtypes(folder, plain, base, of_base, wholes))
    parts = _Parts(_differences(folder, tensors, alone.graph, packing), wholes)
    changes = {weight: _value(alone.graph, weight, *found) for weight, found in parts.differences.items()}
    made = shared((alone.key, tuple(changes.items())), lambda: with_differences(alone.graph, changes))
    ends = end_ids(folder, raw)
    check_vocabulary(folder, config.vocab_size, ends)
    return replace(
        base,
        name=name or folder.resolve().name,
        path=folder,
        config=config,
        graph=made.graph,
        key=made.key,
        kv=made.kv,
        layout=_layout(folder, raw, config, made, parts),
        end_ids=ends,
        max_context=config.max_context,
        checkpoint=Checkpoint(folder, raw, {**base.checkpoint.tensors, **parts.tensors}),
        base=base,
        advised=advised(folder) or NOT_ADVISED,
    )


def check_alone(model: Model, where: Path) -> None:
    """Raise UnsupportedError for models that cannot be a base: those inside a larger model, and rerankers."""
    refuse_head(model.head, str(where))
    if model.part_of:
        fact = f"{model.name} is the text model inside a {model.part_of}, beside which nothing is served"
        raise UnsupportedError(str(where), fact, "save the text model by itself")


def _check(base: Model, fields: Fields) -> Packing:
    """The types of the differences. Raises as `open_delta` does for another format or another base."""
    kind, version = fields.get("delta_type"), fields.get("version")
    if (kind, version) != (TYPE, VERSION):
        fact = f"is version {version!r} of delta_type {kind!r}, where {VERSION} of {TYPE!r} is known"
        raise UnsupportedError(fields.where, fact, _AGAIN)
    check_alone(base, Path(fields.where))
    if fields.get(FINGERPRINT_KEY) != fingerprint(base):
        fact = f"is a difference from other weights than those of {base.path}"
        raise CheckpointError(fields.where, fact, f"use the base that it was made from: {fields.get(BASE_KEY)}")
    packing = packing_of(fields.raw, fields.where)
    if packing is None:
        raise CheckpointError(fields.where, "does not say how its differences are packed", _AGAIN)
    return packing


def _dtypes(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    base: Model,
    of_base: Mapping[str, DType],
    wholes: Mapping[str, TensorInfo],
) -> dict[str, DType]:
    """The type of each weight: the delta's, else the base's. Raises CheckpointError for a weight that neither has."""
    dtypes = {}
    for weight, shape in wanted.items():
        whole = wholes.get(weight)
        if whole is None and (weight not in of_base or base.graph.values[weight].shape != shape):
            there = f"is {list(base.graph.values[weight].shape)}" if weight in of_base else "is missing"
            fact = f"{weight} is {list(shape)} by {CONFIG}, but {there} in the base {base.name}, and not in the delta"
            raise CheckpointError(str(folder), fact, _AGAIN)
        if whole is not None and (whole.shape != shape or not whole.dtype.is_float):
            fact = f"{weight} is {whole.dtype.value} {list(whole.shape)}, where floats {list(shape)} are expected"
            raise CheckpointError(str(folder / DELTA_WEIGHTS), fact, _AGAIN)
        dtypes[weight] = of_base[weight] if whole is None else whole.dtype
    return dtypes


def _differences(
    folder: Path, tensors: Mapping[str, TensorInfo], graph: Graph, packing: Packing
) -> dict[str, tuple[TensorInfo, DType]]:
    """Packed differences by the weight's name. Raises CheckpointError for tensors of other names, shapes or types."""
    by_name = {delta_name(weight): weight for weight in summable(graph)}
    found = {}
    for name, info in tensors.items():
        weight = by_name.get(name)
        if weight is None and name not in graph.values:
            fact = f"holds {name}, which is neither a weight of this model nor the difference of one"
            raise CheckpointError(str(folder / DELTA_WEIGHTS), fact, _AGAIN)
        if weight is not None:
            rows, columns = _shape(graph, weight)
            dtype = packing.dtype_of(weight, (rows, columns))
            stored = None if dtype is None else (rows, dtype.row_bytes(columns))
            if dtype is None or info.shape != stored or info.dtype is not DType.U8 or weight in tensors:
                fact = f"{name} is {info.dtype.value} {list(info.shape)}, which is not what {DELTA_CONFIG} says"
                raise CheckpointError(str(folder / DELTA_WEIGHTS), fact, _AGAIN)
            found[weight] = info, dtype
    return found


def _value(graph: Graph, weight: str, info: TensorInfo, dtype: DType) -> Value:
    return Value(info.name, graph.values[weight].shape, dtype, Kind.WEIGHT)


def _shape(graph: Graph, weight: str) -> tuple[int, int]:
    rows, columns = fixed(graph.values[weight].shape)
    return rows, columns


def _layout(folder: Path, raw: Mapping[str, Any], config: ModelConfig, made: Architecture, parts: _Parts) -> Layout:
    """The layout of the delta's own tensors; of an embedding, or its difference, a prompt's rows may be read first."""
    stored = Checkpoint(folder, raw, parts.tensors)
    stages = {weight: stage for weight, stage in made.weight_stage.items() if weight in stored.tensors}
    tables = (table for table in (config.names.embed, delta_name(config.names.embed)) if table in stages)
    table = next(tables, None)
    return place(stored, stages, made.stages, table, made.stages_reading_whole(table) if table else ())

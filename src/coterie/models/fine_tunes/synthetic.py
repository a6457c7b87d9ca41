"""Fine-tunes without bytes, for modelled machines: an adapter or a delta with the shapes of a model.

    low rank     A [rank, in] and B [out, rank] for every product of the layers, in the type that the config declares
    difference   a packed matrix for every product and embedding table; all else (norms, biases) whole

Size and cost equal those of an adapter that PEFT trained on all linear layers, or of a folder by `coterie delta`.
Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.place import place
from coterie.checkpoint.safetensors import without_bytes
from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import fixed
from coterie.graph.delta import summable, with_differences
from coterie.graph.ir import Graph, Kind, Value
from coterie.graph.low_rank import LowRank, linear_weights, with_low_rank
from coterie.graph.program import architecture_key
from coterie.models.fine_tunes.delta import delta_name
from coterie.models.model import Model, declared_dtype
from coterie.models.packing import ALL_TABLES, may_be_packed


def synthetic_adapter(base: Model, rank: int, name: str) -> Model:
    """A LoRA adapter of this rank on every matrix of the layers, for a base without bytes.

    Raises UnsupportedError for a base without such products.
    """
    dtype = declared_dtype(base.checkpoint.config, name)
    changes = {}
    for weight in linear_weights(base.graph):
        if weight in ALL_TABLES:
            continue
        rows, columns = fixed(base.graph.values[weight].shape)
        stem = weight.removesuffix(".weight")
        a = Value(f"{stem}.lora_A.weight", (rank, columns), dtype, Kind.WEIGHT)
        b = Value(f"{stem}.lora_B.weight", (rows, rank), dtype, Kind.WEIGHT)
        changes[weight] = LowRank(a, b, 1.0)
    if not changes:
        fact = "has no product in its layers that an adapter could change"
        raise UnsupportedError(base.name, fact, "give its fine-tunes whole")
    own = {value.name: (dtype, fixed(value.shape)) for change in changes.values() for value in (change.a, change.b)}
    return _expert_model(base, with_low_rank(base.graph, changes), own, name)


def synthetic_delta(base: Model, packed: DType, name: str) -> Model:
    """A full fine-tune as its difference from a base without bytes, packed as `coterie delta` packs it."""
    sums, own = summable(base.graph), dict[str, tuple[DType, tuple[int, ...]]]()
    differences = {}
    for value in base.graph.weights:
        shape = fixed(value.shape)
        if value.name in sums and may_be_packed(value.name, shape):
            found = Value(delta_name(value.name), value.shape, packed, Kind.WEIGHT)
            differences[value.name] = found
            own[found.name] = packed.stored(shape)
        else:
            own[value.name] = value.dtype, shape
    return _expert_model(base, with_differences(base.graph, differences), own, name)


def _expert_model(base: Model, graph: Graph, own: Mapping[str, tuple[DType, tuple[int, ...]]], name: str) -> Model:
    """The expert with this graph, whose own tensors are `own`."""
    tensors = without_bytes(own)
    stored = Checkpoint(Path(), base.checkpoint.config, tensors)
    stages = {weight: stage for weight, stage in graph.weight_stage().items() if weight in tensors}
    return replace(
        base,
        name=name,
        graph=graph,
        key=architecture_key(graph),
        layout=place(stored, stages, graph.stages),
        checkpoint=replace(stored, tensors={**base.checkpoint.tensors, **tensors}),
        base=base,
    )

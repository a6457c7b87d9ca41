"""From a graph to a frozen program: verify, fuse, plan buffers. A program is made once per architecture key.

Knows nothing about devices.
"""

from __future__ import annotations

from collections.abc import Iterator

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import fixed
from coterie.graph.buffers import Lifetime, plan_buffers
from coterie.graph.delta_net.ops import CONV_STATE, DELTA_STATE, state_units
from coterie.graph.fuse import fuse
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.program import KvLayers, KvShape, Program, Region, kv_states
from coterie.graph.vectors import row_values
from coterie.graph.verify import verify


def compile_graph(graph: Graph, rule_set: str, share_buffers: bool = True) -> Program:
    """Compile. `share_buffers=False` keeps all stored values (for coterie diff). Raises UsageError (verify, fuse)."""
    verify(graph)
    regions = fuse(graph, rule_set)
    plan = plan_buffers(tuple(_lifetimes(graph, regions)), share_buffers)
    weights = tuple(value.name for value in graph.weights)
    return Program(graph, rule_set, regions, plan, weights, kv_shape(graph), _vocab_size(graph))


def kv_shape(graph: Graph) -> KvShape:
    """The KV state that the graph declares; an empty one if it has none and samples nothing.

    Raises UsageError if it samples without a KV state (recurrent states do not count), or has KV states of several
    types.
    """
    states = kv_states(graph)
    if not states and not _samples(graph):
        return KvShape(0, 0, 0, DType.F32)
    types = sorted({state.dtype.name for state in states})
    if not types:
        raise UsageError(graph.name, "the graph samples and declares no KV state", "give it a layer that attends")
    if len(types) > 1:
        fact = f"the graph declares {len(states)} KV states of {len(types)} types, {', '.join(types)}"
        raise UsageError(graph.name, fact, "declare KV states of one type")
    (layers, parts, heads, channels), *others = (fixed(state.shape) for state in states)
    units, unit_bytes = _recurrent_units(graph)
    other_layers = tuple(KvLayers(*other) for other in others)
    return KvShape(layers, heads, channels, states[0].dtype, units, unit_bytes, parts, other_layers)


def _recurrent_units(graph: Graph) -> tuple[int, int]:
    """Number of units of a sequence's recurrent state, and bytes per unit."""
    if CONV_STATE not in graph.values:
        return 0, 0
    conv = fixed(graph.values[CONV_STATE].shape)
    return state_units(conv, fixed(graph.values[DELTA_STATE].shape) if DELTA_STATE in graph.values else None)


def _lifetimes(graph: Graph, regions: tuple[Region, ...]) -> Iterator[Lifetime]:
    """Stored values: the outputs of regions, each from the region that writes it to the last that reads it."""
    last_read: dict[str, int] = {}
    for region in regions:
        last_read.update(dict.fromkeys(region.inputs, region.index))
    for region in regions:
        for name in region.outputs:
            value = graph.values[name]
            if value.kind in (Kind.TENSOR, Kind.OUTPUT):
                # Outputs are read after the step, so nothing may reuse their place.
                last = last_read.get(name, region.index) if value.kind is Kind.TENSOR else len(regions)
                yield Lifetime(name, value.shape, value.dtype.size_bytes, region.index, last)


def _samples(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if op.kind == "sample"]


def _vocab_size(graph: Graph) -> int:
    sampled = _samples(graph)
    if not sampled and all(value.kind is not Kind.STATE for value in graph.values.values()):
        return 0
    if not sampled and (table := _looked_up(graph)):
        return table
    if len(sampled) != 1:
        raise UsageError(graph.name, f"the graph samples {len(sampled)} times", "end it with one sample op")
    vocab = graph.values[sampled[0].inputs[0]].shape[-1]
    if not isinstance(vocab, int):
        raise UsageError(graph.name, f"the vocabulary size is {vocab!r}", "give a number")
    return vocab


def _looked_up(graph: Graph) -> int:
    """Embedding rows (of this rank, if sharded) of a graph that returns vectors instead of tokens; otherwise 0."""
    lookups = [op for op in graph.ops if op.kind in ("embed", "embed_part") and op.inputs[0] == "tokens"]
    tables = [graph.values[op.inputs[1]].shape[0] for op in lookups]
    return tables[0] if row_values(graph) and tables and isinstance(tables[0], int) else 0

"""Flops and bytes of ops and regions, counted once; benchmarks divide them by seconds, models turn them into seconds.

Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coterie.core.shapes import Sizes, Symbol, trailing
from coterie.graph.ir import Graph, Kind, Op, Value
from coterie.graph.program import Program, Region


@dataclass(frozen=True, slots=True)
class Cost:
    """What a kernel must do and move. Input and output bytes are those that cross the kernel's border."""

    flops: int = 0
    weight_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    kv_read_bytes: int = 0
    kv_write_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All bytes moved."""
        return self.weight_bytes + self.input_bytes + self.output_bytes + self.kv_read_bytes + self.kv_write_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.input_bytes + other.input_bytes,
            self.output_bytes + other.output_bytes,
            self.kv_read_bytes + other.kv_read_bytes,
            self.kv_write_bytes + other.kv_write_bytes,
        )


# An exponential, a root or a comparison counts as one flop. Per score of a softmax: scale, max, exp, sum, divide.
SOFTMAX_FLOPS = 5
_Flops = Callable[[Graph, Op, Sizes], int]


def _elementwise(per_element: int) -> _Flops:
    return lambda graph, op, sizes: per_element * sizes.count(graph.values[op.outputs[0]].shape)


def _linear_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    weight, y = graph.values[op.inputs[1]], graph.values[op.outputs[0]]
    rows, columns = sizes.of(weight.shape[0]), sizes.of(weight.shape[1])
    bias = rows if op.inputs[2] else 0
    return sizes.of(y.shape[0]) * (2 * rows * columns + bias)


def _attention_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Causal pairs only: q @ k and p @ v, and the softmax.

    Sizes hold no pairs per window, so with a window this is an upper bound: every token sees the whole window.
    """
    heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[0]].shape[1:])
    window = op.integer("window")
    pairs = min(sizes.pairs, sizes.T * window) if window else sizes.pairs
    return pairs * heads * (4 * channels + SOFTMAX_FLOPS)


FLOPS: Mapping[str, _Flops] = {
    "embed": _elementwise(0),
    "rms_norm": _elementwise(4),
    "linear": _linear_flops,
    "rope": _elementwise(3),
    "kv_append": lambda graph, op, sizes: 0,
    "attention": _attention_flops,
    "add": _elementwise(1),
    "silu": _elementwise(4),
    "mul": _elementwise(1),
    "take_rows": _elementwise(0),
    "sample": lambda graph, op, sizes: SOFTMAX_FLOPS * sizes.count(graph.values[op.inputs[0]].shape),
}


def op_cost(graph: Graph, op: Op, sizes: Sizes) -> Cost:
    """The cost of one op run as a kernel of its own."""
    return ops_cost(graph, (op,), op.inputs, op.outputs, sizes)


def region_cost(program: Program, region: Region, sizes: Sizes) -> Cost:
    """The cost of a region run as one kernel: values that stay inside cost nothing to move."""
    return ops_cost(program.graph, region.ops, region.inputs, region.outputs, sizes)


def program_cost(program: Program, sizes: Sizes) -> Cost:
    """The sum over all regions: one step."""
    return sum((region_cost(program, region, sizes) for region in program.regions), Cost())


def intermediate_bytes(program: Program, sizes: Sizes) -> int:
    """Bytes of intermediates that regions store beyond a tile; the kernels' own counter must agree with this."""
    values = program.graph.values
    stored = (name for region in program.regions for name in region.outputs)
    return sum(value_bytes(values[name], sizes) for name in stored if values[name].kind is Kind.TENSOR)


@dataclass(frozen=True, slots=True)
class RegionRow:
    """One line of a printed program: a region, the kinds of its ops, and what it costs in a step."""

    name: str
    kernel: str
    ops: tuple[str, ...]
    flops: int
    total_bytes: int


def describe(program: Program, sizes: Sizes) -> tuple[RegionRow, ...]:
    """The program's regions in execution order, priced for a step of these sizes."""
    rows = []
    for region in program.regions:
        cost = region_cost(program, region, sizes)
        kinds = tuple(op.kind for op in region.ops)
        rows.append(RegionRow(region.name, region.kernel, kinds, cost.flops, cost.total_bytes))
    return tuple(rows)


def ops_cost(graph: Graph, ops: tuple[Op, ...], inputs: Iterable[str], outputs: Iterable[str], sizes: Sizes) -> Cost:
    """The cost of ops run as one kernel with these values crossing its border."""
    flops = sum(FLOPS[op.kind](graph, op, sizes) for op in ops)
    weights = moved_in = 0
    for name in dict.fromkeys(inputs):
        value = graph.values.get(name)
        if value is None or value.kind is Kind.STATE:
            continue
        size = input_bytes(ops, value, sizes)
        if value.kind is Kind.WEIGHT:
            weights += size
        else:
            moved_in += size
    moved_out = sum(value_bytes(graph.values[n], sizes) for n in outputs if graph.values[n].kind is not Kind.STATE)
    read = sum(kv_bytes(graph, op, sizes) for op in ops if op.kind == "attention")
    written = sum(kv_bytes(graph, op, sizes) for op in ops if op.kind == "kv_append")
    return Cost(flops, weights, moved_in, moved_out, read, written)


def input_bytes(ops: tuple[Op, ...], value: Value, sizes: Sizes) -> int:
    """A gather reads the rows that it takes, at most the whole table; everything else is read once."""
    whole = value_bytes(value, sizes)
    uses = [op for op in ops if value.name in op.inputs]
    gathered = {"embed": (1, Symbol.T), "take_rows": (0, Symbol.R)}
    if all(op.kind in gathered and op.inputs[gathered[op.kind][0]] == value.name for op in uses):
        row = value.dtype.row_bytes(trailing(value.shape))
        return min(whole, sum(sizes.of(gathered[op.kind][1]) * row for op in uses))
    return whole


def value_bytes(value: Value, sizes: Sizes) -> int:
    """Bytes of a whole value in this step."""
    return value.dtype.tensor_bytes([sizes.of(dim) for dim in value.shape])


def kv_bytes(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Bytes of K and V of one layer: of this step's tokens (kv_append), or of the contexts that attention reads."""
    kv = next(graph.values[name] for name in op.inputs if name and graph.values[name].kind is Kind.STATE)
    per_token = trailing(kv.shape) * kv.dtype.size_bytes
    if op.kind == "kv_append":
        return sizes.T * per_token
    # The windows of t new tokens of a sequence cover t + window - 1 positions, and never more than its context.
    window = op.integer("window")
    seen = min(sizes.context_tokens, sizes.T + sizes.B * (window - 1)) if window else sizes.context_tokens
    return seen * per_token

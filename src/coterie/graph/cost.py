"""Flops and bytes of ops and regions, counted once; benchmarks divide them by seconds, models turn them into seconds.

Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coterie.core.shapes import Dim, Sizes, Symbol, Times, trailing
from coterie.graph.branch.cost import BRANCH_FLOPS, matrix_bytes
from coterie.graph.branch.ops import TAKEN_READERS
from coterie.graph.delta_net.cost import DELTA_FLOPS, states_bytes
from coterie.graph.flops import NORM_FLOPS, ROTATED_FLOPS, SOFTMAX_FLOPS, Flops, per_output
from coterie.graph.ir import Graph, Kind, Op, Value
from coterie.graph.kv_cost import KV_READERS, KV_WRITERS, kv_bytes
from coterie.graph.latent.cost import LATENT_FLOPS, head_bytes
from coterie.graph.latent.ops import OF_HEADS
from coterie.graph.layer.ops import LAYER_OPS, MUL_PART
from coterie.graph.ops import CAP, COLLECTIVES, HORIZON, SCALE
from coterie.graph.program import Program, Region
from coterie.graph.scan.cost import SCAN_FLOPS
from coterie.graph.stored import elements, pattern_bytes, value_bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """What a kernel must compute and move. Input and output bytes are those that cross the kernel's border."""

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
SOFTCAP_FLOPS = 5  # two products and a tanh
CONTEXT_READERS = (*KV_READERS, "scores", "alibi_scores", "mix", "attention_grad")  # cost grows with the context


def _scaling_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """One flop per output number if the op has a scale."""
    return sizes.count(graph.values[op.outputs[0]].shape) if SCALE in op.attrs else 0


def _linear_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    weight, y = graph.values[op.inputs[1]], graph.values[op.outputs[0]]
    ends = (bool(op.inputs[2]) + (SCALE in op.attrs)) * sizes.of(weight.shape[0])  # bias and scale, a flop each
    return sizes.of(y.shape[0]) * (2 * elements(weight, sizes) + ends)


def _rope_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    rows, heads, _ = (sizes.of(dim) for dim in graph.values[op.inputs[0]].shape)
    return ROTATED_FLOPS * rows * heads * 2 * len(graph.values[op.inputs[2]].data)


def _group_attention_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    rows, heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[0]].shape)
    return rows * op.integer("group") * heads * (4 * channels + SOFTMAX_FLOPS)


def _scores_flops(per_score: int, channels_of: int) -> Flops:
    """Products of queries and keys, or of probabilities and values: two flops per channel, plus `per_score`."""

    def flops(graph: Graph, op: Op, sizes: Sizes) -> int:
        scores = sizes.of(Symbol.TS)
        _, heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[channels_of]].shape)
        return scores * heads * (2 * channels + per_score)

    return flops


def _group_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    rows, heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[1]].shape)
    return rows * op.integer("group") * heads * 2 * channels


def _all_reduce_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """One rank's share of the additions in a ring all-reduce."""
    ranks = op.integer("ranks")
    return elements(graph.values[op.outputs[0]], sizes) * (ranks - 1) // ranks


def pairs_of(op: Op, sizes: Sizes) -> int:
    """Pairs of a token and a visible position, its own or an earlier one, in an attention or its gradient.

    Sizes hold no pairs per window, so with a window this is an upper bound: every token sees the whole window.
    In bidirectional attention every two tokens see each other, so all pairs but those of a token with itself double.
    """
    window = int(op.attrs.get("window", 0))
    if HORIZON in op.inputs:
        pairs = 2 * sizes.pairs - sizes.T
        return min(pairs, sizes.T * (2 * window - 1)) if window else pairs
    return min(sizes.pairs, sizes.T * window) if window else sizes.pairs


def _attention_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Per pair: q @ k, p @ v and the softmax; per query: growth and sinks."""
    heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[0]].shape[1:])
    per_pair = 4 * channels + SOFTMAX_FLOPS + (SOFTCAP_FLOPS if CAP in op.attrs else 0)
    per_query = (channels if op.growth else 0) + (SOFTMAX_FLOPS if op.sinks else 0)
    return pairs_of(op, sizes) * heads * per_pair + sizes.T * heads * per_query


def _biased_flops(per_pair: int) -> Flops:
    def flops(graph: Graph, op: Op, sizes: Sizes) -> int:
        heads = sizes.of(graph.values[op.inputs[0]].shape[1])
        return _attention_flops(graph, op, sizes) + per_pair * pairs_of(op, sizes) * heads

    return flops


# Flops per output number. A sigmoid or a tanh: exponential, sum and quotient.
PER_ELEMENT: Mapping[str, int] = {
    **dict.fromkeys(("embed", "embed_part"), 0),  # without a scale; FLOPS counts the scale too
    **dict.fromkeys(("take_rows", "take_heads", "first_row", "drop_first", "merge_rows"), 0),
    **dict.fromkeys(("swap", "all_gather", "kv_append", "cast", "copy", "cat", "slice", "heads_first"), 0),
    **dict.fromkeys(("to_float", "kv_cat", "repeat_heads", "mask"), 0),
    **dict.fromkeys(
        ("add", "sub", "mul", "add_bias", "add_table", "mul_table", "square", "rsqrt", "neg", *LAYER_OPS), 1
    ),
    **dict.fromkeys(("relu", "add_positions", "add_mask", "alibi"), 1),
    **dict.fromkeys(("cos", "sin", "scale", "shift", "mul_last", "mul_weight", "mul_heads", "angles"), 1),
    **dict.fromkeys(("sigmoid", "tanh"), 3),
    "rms_norm": NORM_FLOPS,
    "silu": 4,
    **dict.fromkeys(("softmax", "context_softmax"), SOFTMAX_FLOPS - 1),  # max, exp, sum, divide; already scaled
    **{"relu_squared": 2, "layer_norm": 6, "gelu": 8, "xielu": 8},
    "softcap": SOFTCAP_FLOPS,
}


def _linear_grad_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    matrix = op.outputs[0] if op.kind == "linear_dw" else op.inputs[1]
    return 2 * sizes.of(graph.values[op.inputs[0]].shape[0]) * elements(graph.values[matrix], sizes)


def _attention_grad_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Five products: scores (recomputed), dp, dv, dq, dk; the softmax and its derivative (three flops per score)."""
    heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[1]].shape[1:])
    return pairs_of(op, sizes) * heads * (10 * channels + SOFTMAX_FLOPS + 3)


def _of_input(per_element: int) -> Flops:
    return lambda graph, op, sizes: per_element * sizes.count(graph.values[op.inputs[0]].shape)


FLOPS: Mapping[str, Flops] = {
    **{kind: per_output(flops) for kind, flops in PER_ELEMENT.items()},
    **dict.fromkeys(("embed", "embed_part"), _scaling_flops),
    "linear": _linear_flops,
    "attention": _attention_flops,
    "alibi_attention": _biased_flops(2),
    "relative_attention": _biased_flops(1),
    "group_attention": _group_attention_flops,
    "sample": lambda graph, op, sizes: SOFTMAX_FLOPS * sizes.count(graph.values[op.inputs[0]].shape),
    "all_reduce": _all_reduce_flops,
    "mean": lambda graph, op, sizes: sizes.count(graph.values[op.inputs[0]].shape),
    "scores": _scores_flops(0, 0),
    "alibi_scores": _scores_flops(2, 0),
    "mix": _scores_flops(0, 1),
    **dict.fromkeys(("group_scores", "group_mix"), _group_flops),
    **dict.fromkeys(("linear_dx", "linear_dw"), _linear_grad_flops),
    **dict.fromkeys(("bias_dw", "positions_dw"), _of_input(1)),
    "rms_norm_dx": _of_input(9),
    "rms_norm_dw": _of_input(5),
    "layer_norm_dx": _of_input(11),
    **dict.fromkeys(("layer_norm_dw", "silu_dx"), _of_input(7)),
    **dict.fromkeys(("rope", "rope_dx"), _rope_flops),
    "gelu_dx": _of_input(14),
    "attention_grad": _attention_grad_flops,
    "take_rows_dx": _of_input(0),
    "loss_dx": _of_input(SOFTMAX_FLOPS + 1),
    **dict.fromkeys(("loss_parts", "loss_part_dx"), _of_input(4)),
    "embed_dw": lambda graph, op, sizes: (1 + (SCALE in op.attrs)) * sizes.count(graph.values[op.inputs[0]].shape),
    **BRANCH_FLOPS,
    **DELTA_FLOPS,
    **SCAN_FLOPS,
    **LATENT_FLOPS,
}


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective among ranks: `bytes` is the size of the full result, which every rank ends up with."""

    kind: str
    bytes: int
    ranks: int


def collectives(program: Program, region: Region, sizes: Sizes) -> tuple[Collective, ...]:
    """The collectives of a region, in order."""
    values = program.graph.values
    return tuple(
        Collective(op.kind, value_bytes(values[op.outputs[0]], sizes), op.integer("ranks"))
        for op in region.ops
        if op.kind in COLLECTIVES
    )


def op_cost(graph: Graph, op: Op, sizes: Sizes) -> Cost:
    """The cost of one op run as a kernel of its own."""
    return ops_cost(graph, (op,), op.inputs, op.outputs, sizes)


def region_cost(program: Program, region: Region, sizes: Sizes) -> Cost:
    """The cost of a region run as one kernel: values that stay inside cost nothing to move."""
    return ops_cost(program.graph, region.ops, region.inputs, region.outputs, sizes)


def reads_context(program: Program, region: Region) -> bool:
    """Whether a region's cost depends on `context_tokens` or `pairs`."""
    by_context = not _dims(program, region).isdisjoint((Symbol.S, Symbol.TS))
    return by_context or any(op.kind in CONTEXT_READERS for op in region.ops)


def reads_batch(program: Program, region: Region) -> tuple[bool, bool]:
    """Whether the cost of a region that does not read context depends on B, and on R; it may always depend on T."""
    dims = _dims(program, region)
    return Symbol.B in dims, Symbol.R in dims


def _dims(program: Program, region: Region) -> set[Dim]:
    """All dimensions of the values of a region's ops; rows per sequence (`Times`) count as B."""
    values = program.graph.values
    names = (name for op in region.ops for name in (*op.inputs, *op.outputs) if name in values)
    return {Symbol.B if isinstance(dim, Times) else dim for name in names for dim in values[name].shape}


def program_cost(program: Program, sizes: Sizes) -> Cost:
    """The sum over all regions: one step."""
    return sum((region_cost(program, region, sizes) for region in program.regions), Cost())


def intermediate_bytes(program: Program, sizes: Sizes) -> int:
    """Bytes of intermediates that regions store beyond a tile; the kernels' own counter must agree with this."""
    values = program.graph.values
    stored = (name for region in program.regions for name in region.outputs)
    return sum(value_bytes(values[name], sizes) for name in stored if values[name].kind is Kind.TENSOR)


def ops_cost(graph: Graph, ops: tuple[Op, ...], inputs: Iterable[str], outputs: Iterable[str], sizes: Sizes) -> Cost:
    """The cost of ops run as one kernel with these values crossing its border."""
    flops = sum(FLOPS[op.kind](graph, op, sizes) for op in ops)
    weights = moved_in = 0
    for name in dict.fromkeys(inputs):
        value = graph.values.get(name)
        if value is None or value.kind is Kind.STATE:
            continue
        size = input_bytes(graph, ops, value, sizes)
        if value.kind is Kind.WEIGHT:
            weights += size
        else:
            moved_in += size
    moved_out = sum(value_bytes(graph.values[n], sizes) for n in outputs if graph.values[n].kind is not Kind.STATE)
    read = written = states_bytes(graph, ops, sizes)
    read += sum(kv_bytes(graph, op, sizes) for op in ops if op.kind in KV_READERS)
    written += sum(kv_bytes(graph, op, sizes) for op in ops if op.kind in KV_WRITERS)
    return Cost(flops, weights, moved_in, moved_out, read, written)


def input_bytes(graph: Graph, ops: tuple[Op, ...], value: Value, sizes: Sizes) -> int:
    """Bytes read of an input.

    Gathers read the rows that they take, views the part that they expose, together never more than the whole; any other
    op reads all of it, once. Branch matrices: see branch/cost.py.
    """
    whole = value_bytes(value, sizes)
    taken = [_taken_bytes(graph, op, value, sizes) for op in ops if value.name in op.inputs]
    return whole if None in taken else min(whole, sum(filter(None, taken)))


def _taken_bytes(graph: Graph, op: Op, value: Value, sizes: Sizes) -> int | None:
    """Bytes of a value that an op reads; None for all of them."""
    gathered = {
        **dict.fromkeys(("embed", "embed_part"), (1, Symbol.T)),
        "add_positions": (2, Symbol.T),
        "take_rows": (0, Symbol.R),
    }
    if op.kind in gathered and op.inputs[gathered[op.kind][0]] == value.name:
        return sizes.of(gathered[op.kind][1]) * value.dtype.row_bytes(trailing(value.shape))
    if op.kind == "take_heads":
        return value_bytes(value, sizes) // op.integer("of") * op.integer("count")
    if op.kind == MUL_PART and value.name == op.inputs[1]:
        return value_bytes(value, sizes) // sizes.of(value.shape[1])
    if op.kind == "slice":
        return sizes.count((*value.shape[:-1], op.integer("count"))) * value.dtype.size_bytes
    if op.kind == "drop_first":
        return value_bytes(value, sizes) // op.integer("group") * (op.integer("group") - 1)
    if op.kind in TAKEN_READERS and value.kind is Kind.WEIGHT:
        return matrix_bytes(op, value, sizes)
    if op.kind in OF_HEADS and value.name == op.inputs[1]:
        return head_bytes(graph, op, value)
    if op.kind == "linear_dw" and value.name == op.inputs[2]:
        return pattern_bytes(value, sizes)
    return None

"""Tensor parallelism: one rank's graph, with the exchanges among ranks as ops. Megatron-LM's scheme (arXiv 1909.08053).

    q, k, v, gate, up    split by heads or rows: each rank computes its part from the whole hidden state
    o, down              split by columns: each rank's sum is partial, all_reduce completes it, then the bias is added
    embedding            split by vocabulary: rows are 0 for tokens of other ranks, all_reduce completes them
    head                 split by vocabulary: all_gather joins the logits, which every rank samples alike
    KV heads             split; if fewer than ranks, each is held by ranks / heads neighbouring ranks
    branches             gate and up of each by rows, down by columns; every rank makes the same choice of branches
    sinks                split by heads
    norm of all heads    all_gather joins the heads; each rank norms them all and keeps its own
    low-rank change      B is split like the rows of its weight, A like its columns; x A^T is whole on every rank

Everything else (norms, residuals, tables of positions and types, a vision tower's patches) is replicated on all ranks.
A linear is split only if what follows it, up to the next linear, works per head or per column.
Knows nothing about machines, or about how a collective is carried out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from coterie.core.errors import UsageError
from coterie.core.shapes import Shape
from coterie.graph.branch.ops import BOTH_UP, CLIPPED, DOWN, matrices_of
from coterie.graph.delta_net.ops import DELTA_OPS
from coterie.graph.ir import Attr, Graph, Kind, Op, Value, norms_all_heads
from coterie.graph.latent.ops import ATTEND, OF_HEADS
from coterie.graph.layer.ops import LAYER_OPS
from coterie.graph.ops import ATTENTION, SCALE
from coterie.graph.program import kv_states

# Ops that process each head or column independently: their output is split like their input.
_PER_COLUMN = (
    *("silu", "gelu", "relu", "relu_squared", "xielu", "softcap"),
    *("add", "mul", "rope", "take_heads", "group_attention"),
)
_ATTENTION = (*ATTENTION, ATTEND)


@dataclass(frozen=True, slots=True)
class Split:
    """A weight is cut into `parts` along `axis`; rank r of n holds part r * parts // n."""

    axis: int
    parts: int

    def of_rank(self, shape: Shape, rank: int, ranks: int) -> tuple[slice, ...]:
        """A rank's slice of a tensor with this full shape."""
        size = shape[self.axis]
        step = (size if isinstance(size, int) else 0) // self.parts
        part = rank * self.parts // ranks
        return (*(slice(None),) * self.axis, slice(part * step, (part + 1) * step))


@dataclass(frozen=True, slots=True)
class Sharded:
    """One rank's graph, and the split of each weight that a rank does not hold whole."""

    graph: Graph
    splits: Mapping[str, Split]


def shard(graph: Graph, degree: int, rank: int = 0, odd_vocabulary: bool = False) -> Graph:
    """The graph of one rank of `degree`; at degree 1, the graph itself.

    Ranks differ only in numbers (their part of each weight), not in shapes. With `odd_vocabulary`, a vocabulary that
    does not divide evenly stays whole, and every rank computes all of embedding and head.
    Raises UsageError if heads, columns or vocabulary cannot be split by the degree.
    """
    return split_graph(graph, degree, rank, odd_vocabulary).graph


def split_graph(graph: Graph, degree: int, rank: int = 0, odd_vocabulary: bool = False) -> Sharded:
    """Like `shard`; also returns how the weights are split."""
    if degree < 1 or not 0 <= rank < degree:
        raise UsageError(graph.name, f"rank {rank} of {degree} ranks does not exist", "give a degree of at least 1")
    if any(op.kind in ("all_reduce", "all_gather") for op in graph.ops):
        raise UsageError(graph.name, "the graph is one rank's already", "shard the whole graph")
    if degree > 1 and any(op.kind in DELTA_OPS for op in graph.ops):
        fact = f"its layers with a recurrent state are not split over {degree} ranks"
        raise UsageError(graph.name, fact, "use a machine of one unit")
    if degree > 1 and (len(kv_states(graph)) > 1 or any(op.kind in LAYER_OPS for op in graph.ops)):
        fact = f"its layers of different heads, with inputs of their own, are not split over {degree} ranks"
        raise UsageError(graph.name, fact, "use a machine of one unit")
    return _Sharding(graph, degree, rank, odd_vocabulary).run() if degree > 1 else Sharded(graph, {})


@dataclass(slots=True)
class _Sharding:
    graph: Graph
    degree: int
    rank: int
    odd_vocabulary: bool = False
    splits: dict[str, Split] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    split: dict[str, int] = field(default_factory=dict)  # split activations -> number of parts; a rank holds one
    readers: dict[str, list[Op]] = field(default_factory=lambda: defaultdict(list))
    known: dict[str, bool] = field(default_factory=dict)

    def run(self) -> Sharded:
        self.values.update(self.graph.values)
        for op in self.graph.ops:
            for name in op.inputs:
                self.readers[name].append(op)
        for value in self.graph.values.values():
            if value.kind is Kind.STATE:
                self._narrow(value.name, 2, self._kv_parts(value))
        for op in self.graph.ops:
            self._op(op)
        if not self.splits:
            fact = f"none of its {len(self.ops)} ops can be split over {self.degree} ranks"
            raise UsageError(self.graph.name, fact, "compute it on one, whole")
        graph = Graph(self.graph.name, MappingProxyType(self.values), tuple(self.ops))
        return Sharded(graph, MappingProxyType(self.splits))

    def _op(self, op: Op) -> None:
        if op.kind == "embed" and op.inputs[0] == "tokens" and not self._stays_whole(op.inputs[1]):
            self._embed(op)
        elif op.kind == "linear":
            self._linear(op)
        elif op.kind in BOTH_UP:
            self._branches_up(op)
        elif op.kind == DOWN:
            self._branches_down(op)
        elif op.kind == "sample" and op.inputs[0] in self.split:
            whole = self._exchange("all_gather", op, op.inputs[0], self.graph.values[op.inputs[0]].shape)
            self.ops.append(replace(op, inputs=(whole, *op.inputs[1:])))
        elif op.kind == "rms_norm" and norms_all_heads(self.graph, op) and self._splittable(op.outputs[0]):
            self._norm_of_all_heads(op)
        elif any(name in self.split for name in op.inputs):
            self._per_column(op)
        else:
            self.ops.append(op)

    def _per_column(self, op: Op) -> None:
        """Append an op that needs only this rank's heads or columns."""
        self.ops.append(op)
        if op.kind == "kv_append":
            return
        whole = [n for n in op.inputs if n not in self.split and n and self.graph.values[n].kind is Kind.TENSOR]
        if whole or op.outputs[0] in self.split:
            fact = f"{op.name} takes {whole} whole and the rest in parts"
            raise UsageError(self.graph.name, fact, "a graph of this form cannot be sharded")
        self._narrow(op.outputs[0], 1, self.split[op.inputs[0]])
        self.split[op.outputs[0]] = self.split[op.inputs[0]]
        if op.kind in ("alibi_attention", "relative_attention"):
            self._biases(op)
        if op.kind in OF_HEADS:
            self._split(op.inputs[1], 0, self.split[op.inputs[0]])
        if op.sinks:
            self._split(op.sinks, 0, self.split[op.inputs[0]])

    def _branches_up(self, op: Op) -> None:
        y = op.outputs[0]
        self._rows_of(self.graph.values[y].shape[2], f"a branch of {y} has", "columns")
        self._narrow(y, 2, self.degree)
        self.split[y] = self.degree
        self._narrow_matrices(op, 0)
        for name in op.inputs[-2:] if op.kind == CLIPPED else ():
            self._split(name, 1, self.degree)
        self.ops.append(op)

    def _branches_down(self, op: Op) -> None:
        y = op.outputs[0]
        self._narrow_matrices(op, 1)
        partial = self._value(f"{y}/partial", y)
        self.ops.append(replace(op, outputs=(partial,)))
        self._exchange("all_reduce", op, partial, self.graph.values[y].shape, y)

    def _narrow_matrices(self, op: Op, axis: int) -> None:
        for name in matrices_of(op.kind, op.inputs):
            self._split(name, axis, self.degree)

    def _norm_of_all_heads(self, op: Op) -> None:
        """Each rank norms all heads, then keeps its own."""
        (x, weight), y = op.inputs, op.outputs[0]
        shape, parts = self.graph.values[y].shape, self._parts(y)
        whole_x = self._exchange("all_gather", op, x, shape) if x in self.split else x
        whole_y = self._value(f"{y}/whole", y)
        self.ops.append(replace(op, inputs=(whole_x, weight), outputs=(whole_y,)))
        heads = shape[1] if isinstance(shape[1], int) else 0
        count, first = heads // parts, self.rank * parts // self.degree * (heads // parts)
        self._narrow(y, 1, parts)
        self.split[y] = parts
        self._add("take_heads", op, (whole_y,), y, {"of": heads, "first": first, "count": count})

    def _biases(self, op: Op) -> None:
        """Each rank holds the slopes, or the table columns, of its own heads."""
        biases = self.graph.values[op.inputs[4]]
        if biases.kind is Kind.WEIGHT:
            self._split(biases.name, 1, self.degree)
            return
        count = len(biases.data) // self.degree
        own = biases.data[self.rank * count : (self.rank + 1) * count]
        self.values[biases.name] = replace(biases, shape=(*biases.shape[:-1], count), data=own)

    def _embed(self, op: Op) -> None:
        y, table = op.outputs[0], op.inputs[1]
        rows = self._rows_of(self.graph.values[table].shape[0], f"{table} has", "rows")
        self._split(table, 0, self.degree)
        partial = self._value(f"{y}/partial", y)
        self._add("embed_part", op, op.inputs, partial, {"first_row": self.rank * rows, **op.attrs})
        self._exchange("all_reduce", op, partial, self.graph.values[y].shape, y)

    def _linear(self, op: Op) -> None:
        x, weight, bias = op.inputs
        y = op.outputs[0]
        if x in self.split:
            self._row_parallel(op)
        elif self._is_low(y):
            self.ops.append(op)
        elif self._splittable(y) and not (self._is_head(y) and self._stays_whole(weight)):
            parts = self._parts(y)
            self._narrow(y, 1, parts)
            for name in filter(None, (weight, bias)):
                self._split(name, 0, parts)
            self.split[y] = parts
            self.ops.append(op)
        else:
            self.ops.append(op)

    def _is_low(self, y: str) -> bool:
        """Whether only products read it: it lies between the two matrices of a low-rank change (low_rank.py)."""
        return bool(self.readers[y]) and all(op.kind == "linear" for op in self.readers[y])

    def _is_head(self, y: str) -> bool:
        """Whether it is used only for sampling, possibly after additions and a soft cap."""
        return all(
            op.kind == "sample" or (op.kind in ("softcap", "add") and self._is_head(op.outputs[0]))
            for op in self.readers[y]
        )

    def _stays_whole(self, table: str) -> bool:
        """Whether every rank holds all of this table with a row per token."""
        rows = self.graph.values[table].shape[0]
        return self.odd_vocabulary and isinstance(rows, int) and rows % self.degree != 0

    def _row_parallel(self, op: Op) -> None:
        x, weight, bias = op.inputs
        y = op.outputs[0]
        self._split(weight, 1, self.degree)
        partial = self._value(f"{y}/partial", y)
        self.ops.append(replace(op, inputs=(x, weight, ""), outputs=(partial,)))
        if bias and SCALE in op.attrs:
            fact = f"{op.name} scales a sum of all ranks and its bias"
            raise UsageError(self.graph.name, fact, "a graph of this form cannot be sharded")
        whole = self._exchange("all_reduce", op, partial, self.graph.values[y].shape, "" if bias else y)
        if bias:
            self._add("add_bias", op, (whole, bias), y, {})

    def _exchange(self, kind: str, op: Op, x: str, shape: Shape, y: str = "") -> str:
        """Append a collective on `x`; returns the name of its result."""
        made = y or f"{x}/whole"
        self.values.setdefault(made, replace(self.values[x], name=made, shape=shape))
        self._add(kind, op, (x,), made, {"ranks": self.degree})
        return made

    def _add(self, kind: str, near: Op, inputs: tuple[str, ...], y: str, attrs: dict[str, Attr]) -> None:
        taken = near.name if kind == "embed_part" else f"{near.name}/{kind}"
        self.ops.append(Op(kind, taken, near.stage, inputs, (y,), MappingProxyType(attrs)))

    def _value(self, name: str, like: str) -> str:
        self.values[name] = replace(self.graph.values[like], name=name, kind=Kind.TENSOR)
        return name

    def _split(self, weight: str, axis: int, parts: int) -> None:
        """Narrow a weight to the rank's part, and record how it is cut."""
        self._narrow(weight, axis, parts)
        self.splits[weight] = Split(axis, parts)

    def _narrow(self, name: str, axis: int, parts: int) -> None:
        """Replace a value by the rank's part of it."""
        whole = self.graph.values[name]
        size = whole.shape[axis]
        own = (size if isinstance(size, int) else 0) // parts
        self.values[name] = replace(whole, shape=(*whole.shape[:axis], own, *whole.shape[axis + 1 :]))

    def _splittable(self, name: str) -> bool:
        """Whether everything that reads the value, up to the next linear, works per head or per column."""
        if name not in self.known:
            self.known[name] = bool(self.readers[name]) and all(self._takes_part(op, name) for op in self.readers[name])
        return self.known[name]

    def _takes_part(self, op: Op, name: str) -> bool:
        if op.kind in ("linear", "sample", "kv_append"):
            return op.inputs[0] == name or op.kind == "kv_append"
        head_norm = op.kind == "rms_norm" and len(self.graph.values[name].shape) == 3
        if head_norm and norms_all_heads(self.graph, op) and self._parts(name) < self.degree:
            return False  # ranks that share a head would gather it twice
        return (op.kind in (*_PER_COLUMN, *_ATTENTION, *OF_HEADS) or head_norm) and self._splittable(op.outputs[0])

    def _parts(self, y: str) -> int:
        """Number of parts of the second axis of a linear's output, which its readers determine."""
        op, size = self.readers[y][0], self.graph.values[y].shape[1]
        while op.kind in ("rope", "rms_norm", "add"):
            op = self.readers[op.outputs[0]][0]
        if op.kind == "kv_append":
            return self._kv_parts(next(v for v in self.graph.values.values() if v.kind is Kind.STATE))
        if op.kind == "take_heads":
            groups = (size if isinstance(size, int) else 0) // op.integer("of")
            self._rows_of(groups, f"{y} has", "groups of heads")
        self._rows_of(size, f"{y} has", "heads" if len(self.graph.values[y].shape) == 3 else "columns")
        return self.degree

    def _kv_parts(self, state: Value) -> int:
        heads = state.shape[2] if isinstance(state.shape[2], int) else 0
        if heads % self.degree and self.degree % heads:
            fact = f"{heads} key/value heads can neither be split nor repeated evenly over {self.degree} ranks"
            raise UsageError(self.graph.name, fact, f"use a degree that divides {heads} or is a multiple of it")
        return min(heads, self.degree)

    def _rows_of(self, size: object, has: str, what: str) -> int:
        whole = size if isinstance(size, int) else 0
        if whole % self.degree or not whole:
            fact = f"{has} {whole} {what}, which do not split over {self.degree} ranks"
            raise UsageError(self.graph.name, fact, f"use a degree that divides {whole}")
        return whole // self.degree

"""Training graphs: the forward pass of a decoder, then gradients of the mean cross-entropy, by a rule per op.

    y = op(a, b)     a rule computes the gradients of a and b from dy and values of the forward pass
    several readers  their gradients are added
    shared weights   a weight used on several ranks (of a key/value head, of a norm of heads): each rank has a partial
                     gradient, which an all_reduce among just these ranks completes
    split outputs    where the forward pass reads a whole value and each rank computes its own columns, the ranks'
                     gradients of that value are partial: an all_reduce at the start of a block, where the forward pass
                     has one at the end

Logits stay split: ranks exchange a maximum and a sum per row. Gradients of weights are outputs of the step; there is no
optimiser, and only attention scores are recomputed. Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError, UsageError
from coterie.core.shapes import Shape, Symbol, trailing
from coterie.graph.ir import Attr, Graph, Kind, Op, Value, norms_all_heads
from coterie.graph.ops import SCALE
from coterie.graph.shard import Sharded, Split, split_graph

TARGETS = "targets"


def training_graph(graph: Graph, degree: int = 1) -> Graph:
    """Forward and backward of a decoder: stages `layers.0.grad` and so on follow the forward ones, last layer first.

    Every row is a target: give Sizes with R = T. With a degree, the graph of the first of that many ranks (shard.py).
    Raises UnsupportedError for an op that has no rule, and UsageError for a degree by which the graph cannot be split,
    or a graph without logits.
    """
    return split_training_graph(graph, degree).graph


def split_training_graph(graph: Graph, degree: int, rank: int = 0) -> Sharded:
    """Like `training_graph`; also returns the splits of the weights, which apply to their gradients too."""
    whole = split_graph(graph, degree, rank)
    return Sharded(_Backward(whole.graph, degree, rank, whole.splits).run(), whole.splits)


@dataclass(slots=True)
class _Backward:
    graph: Graph
    degree: int
    rank: int
    splits: Mapping[str, Split]
    values: dict[str, Value] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)  # terms of a gradient that are equal on every rank
    shares: dict[str, list[str]] = field(default_factory=dict)  # terms to be summed over the ranks
    stage: str = ""

    def run(self) -> Graph:
        """Build the training graph."""
        self.values = {n: v for n, v in self.graph.values.items() if n not in ("sampling", "next_tokens")}
        self.values[TARGETS] = Value(TARGETS, (Symbol.R,), DType.I32, Kind.INPUT)
        logits = next((op.inputs[0] for op in self.graph.ops if op.kind == "sample"), None)
        if logits is None:
            raise UsageError(self.graph.name, "it draws no tokens, so it has no loss", "train a language model")
        joined = next((op for op in self.graph.ops if op.kind == "all_gather" and op.outputs == (logits,)), None)
        forward = [op for op in self.graph.ops if op.kind != "sample" and op is not joined]
        self.ops = list(forward)
        self.stage = f"{self.graph.ops[-1].stage}.grad"
        self._loss(joined.inputs[0] if joined else logits, split=joined is not None)
        for op in reversed(forward):
            self.stage = f"{op.stage}.grad"
            rule = RULES.get(op.kind)
            if rule is None:
                fact = f"op {op.kind} has no gradient"
                raise UnsupportedError(
                    f"{self.graph.name}: {op.name}", fact, "train a model of norms, linears and rope"
                )
            rule(self, op)
        return Graph(f"{self.graph.name}-train", MappingProxyType(self.values), tuple(self.ops))

    def _loss(self, logits: str, split: bool) -> None:
        """The loss gradient in a rank's logits; it needs every rank's maximum and sum of exponentials per row."""
        shape = self.values[logits].shape
        if not split:
            self._give(logits, self._op("loss_dx", "loss", (logits, TARGETS), shape))
            return
        own = self._op("loss_parts", "loss.parts", (logits,), (shape[0], 2))
        every = self._op("all_gather", "loss.all", (own,), (shape[0], 2 * self.degree), ranks=self.degree)
        first = self.rank * trailing(shape)
        self._give(logits, self._op("loss_part_dx", "loss", (logits, every, TARGETS), shape, first_row=first))

    def gradient(self, name: str) -> str:
        """The gradient of a value: the sum of its readers' terms, those in `shares` summed over the ranks first."""
        parts, shares = self.parts.get(name, []), self.shares.get(name, [])
        if shares:
            own = self._sum(name, shares, " own")
            shape = self.values[name].shape
            parts = [self._op("all_reduce", f"all of {_last(name)}", (own,), shape, ranks=self.degree), *parts]
        return self._sum(name, parts)

    def _sum(self, name: str, parts: list[str], what: str = "") -> str:
        total = parts[0]
        for n, part in enumerate(parts[1:]):
            total = self._op("add", f"sum {n} of{what} {_last(name)}", (total, part), self.values[name].shape)
        return total

    def _give(self, name: str, gradient: str, is_share: bool = False) -> None:
        (self.shares if is_share else self.parts).setdefault(name, []).append(gradient)

    def _op(self, kind: str, name: str, inputs: tuple[str, ...], shape: Shape, **attrs: Attr) -> str:
        full = f"{self.stage}/{name}"
        like = next(self.values[n].dtype for n in inputs if n and self.values[n].dtype.is_float)
        self.values[full] = Value(full, shape, like, Kind.TENSOR)
        self.ops.append(Op(kind, full, self.stage, inputs, (full,), MappingProxyType(dict(attrs))))
        return full

    def _weight(self, kind: str, op: Op, weight: str, inputs: tuple[str, ...], sharing: int = 1, **attrs: Attr) -> None:
        """Output the gradient of a weight, summed over the ranks that share it; a tied weight has one per use."""
        name, shape = f"{_short(op)}.{weight}", self.values[weight].shape
        density = self.values[weight].density
        made = self._op(kind, name if sharing == 1 else f"{name} own", inputs, shape, **attrs)
        self.values[made] = replace(self.values[made], density=density)
        if sharing > 1:
            made = self._op("all_reduce", name, (made,), shape, ranks=sharing)
        self.values[made] = replace(self.values[made], kind=Kind.OUTPUT, density=density)

    def linear(self, op: Op) -> None:
        """dx = dy w, dw = dy^T x. A rank with only some of the output columns has a partial dx.

        So has one of several ranks with the same columns (a shared key/value head): dy is from its own queries only.
        """
        x, weight, bias = op.inputs
        dy, split = self._scaled(op, self.gradient(op.outputs[0])), self.splits.get(weight)
        sharing = self.degree // split.parts if split is not None else 1
        by_columns = split is not None and split.axis == 0
        dx = self._op("linear_dx", f"{_short(op)}.dx", (dy, weight), self.values[x].shape)
        self._give(x, dx, is_share=by_columns)
        pattern = weight if self.values[weight].density != 1.0 else ""
        self._weight("linear_dw", op, weight, (dy, x, pattern), sharing)
        if bias:
            self._weight("bias_dw", op, bias, (dy,), sharing)

    def _scaled(self, op: Op, dy: str) -> str:
        """The gradient before the op's scale."""
        if SCALE not in op.attrs:
            return dy
        return self._op("scale", f"{_short(op)}.dy", (dy,), self.values[dy].shape, factor=op.scale)

    def norm(self, op: Op) -> None:
        """Gradients of x, weight and bias; those of a norm of heads are partial on every rank."""
        x, weight, *bias = op.inputs
        if norms_all_heads(self.graph, op) or op.offset:
            fact = "a norm over all heads together, or with an offset, has no gradient"
            raise UnsupportedError(
                f"{self.graph.name}: {op.name}", fact, "train a model whose norms are of heads or rows"
            )
        dy, eps = self.gradient(op.outputs[0]), op.number("eps")
        shape = self.values[x].shape
        sharing = self.degree if len(shape) > 2 else 1
        self._give(x, self._op(f"{op.kind}_dx", f"{_short(op)}.dx", (dy, x, weight), shape, eps=eps))
        self._weight(f"{op.kind}_dw", op, weight, (dy, x), sharing, eps=eps)
        if any(bias):
            self._weight("bias_dw", op, bias[0], (dy,), sharing)

    def rope(self, op: Op) -> None:
        """Rotate back."""
        dy = self.gradient(op.outputs[0])
        shape = self.values[op.inputs[0]].shape
        self._give(op.inputs[0], self._op("rope_dx", f"{_short(op)}.dx", (dy, *op.inputs[1:]), shape, **op.attrs))

    def attention(self, op: Op) -> None:
        """Gradients of q, k and v; k and v are those that this layer appended."""
        if op.cap or op.growth or op.sinks:
            of_sinks = "attention with sinks" if op.sinks else "attention whose queries grow"
            what = "capped attention" if op.cap else of_sinks
            where = f"{self.graph.name}: {op.name}"
            raise UnsupportedError(where, f"{what} has no gradient", "train a model without")
        append = next(o for o in self.graph.ops if o.kind == "kv_append" and o.attrs["layer"] == op.attrs["layer"])
        read = (op.inputs[0], *append.inputs[:2])
        dy = self.gradient(op.outputs[0])
        outputs = []
        for part, name in zip("qkv", read, strict=True):
            full = f"{self.stage}/attention.d{part}"
            self.values[full] = Value(full, self.values[name].shape, self.values[name].dtype, Kind.TENSOR)
            outputs.append(full)
            self._give(name, full)
        attrs = MappingProxyType({"scale": op.number("scale"), "window": op.integer("window")})
        inputs = (dy, *read, "positions", "sequence")
        self.ops.append(Op("attention_grad", f"{self.stage}/attention.grad", self.stage, inputs, tuple(outputs), attrs))

    def add(self, op: Op) -> None:
        """dy for both operands."""
        dy = self.gradient(op.outputs[0])
        for name in op.inputs:
            self._give(name, dy)

    def mul(self, op: Op) -> None:
        """dy times the other operand."""
        dy, (a, b) = self.gradient(op.outputs[0]), op.inputs
        for name, other, side in ((a, b, "da"), (b, a, "db")):
            self._give(name, self._op("mul", f"{_short(op)}.{side}", (dy, other), self.values[name].shape))

    def activation(self, op: Op) -> None:
        """dy times the derivative."""
        dy, x = self.gradient(op.outputs[0]), op.inputs[0]
        self._give(x, self._op(f"{op.kind}_dx", f"{_short(op)}.dx", (dy, x), self.values[x].shape, **op.attrs))

    def take_rows(self, op: Op) -> None:
        """Scatter the rows back."""
        dy, (x, rows) = self.gradient(op.outputs[0]), op.inputs
        self._give(x, self._op("take_rows_dx", f"{_short(op)}.dx", (dy, rows), self.values[x].shape))

    def embed(self, op: Op) -> None:
        """Gradient of the table: all rows, or the rank's own."""
        tokens, table = op.inputs
        self._weight("embed_dw", op, table, (self.gradient(op.outputs[0]), tokens), 1, **op.attrs)

    def all_reduce(self, op: Op) -> None:
        """dy for each rank's summand."""
        self._give(op.inputs[0], self.gradient(op.outputs[0]))

    def add_bias(self, op: Op) -> None:
        """dy for x; its sum over rows for the bias."""
        dy, (x, bias) = self.gradient(op.outputs[0]), op.inputs
        self._give(x, dy)
        self._weight("bias_dw", op, bias, (dy,))

    def add_positions(self, op: Op) -> None:
        """dy for x; scattered rows for the table."""
        x, positions, table = op.inputs
        dy = self.gradient(op.outputs[0])
        self._give(x, dy)
        self._weight("positions_dw", op, table, (dy, positions), offset=op.integer("offset"))

    def nothing(self, op: Op) -> None:
        """No gradient: the rule of attention takes the operands of kv_append directly."""


def _short(op: Op) -> str:
    return _last(op.name)


def _last(name: str) -> str:
    return name.rsplit("/", maxsplit=1)[-1]


_Rule: TypeAlias = Callable[[_Backward, Op], None]
RULES: Mapping[str, _Rule] = {
    "embed": _Backward.embed,
    "embed_part": _Backward.embed,
    "all_reduce": _Backward.all_reduce,
    "add_bias": _Backward.add_bias,
    "rms_norm": _Backward.norm,
    "layer_norm": _Backward.norm,
    "linear": _Backward.linear,
    "rope": _Backward.rope,
    "kv_append": _Backward.nothing,
    "attention": _Backward.attention,
    "add": _Backward.add,
    "mul": _Backward.mul,
    "silu": _Backward.activation,
    "gelu": _Backward.activation,
    "add_positions": _Backward.add_positions,
    "take_rows": _Backward.take_rows,
}

"""Training graphs: the forward pass of a decoder, then gradients of the mean cross-entropy by a rule per op.

    y = op(a, b)     a rule makes, from dy and what the forward pass has, the gradients of a and b
    several readers  their gradients are added up

Weights' gradients leave the step; there is no optimiser, and nothing of the forward pass is computed again but
attention's scores. Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Shape, Symbol
from coterie.graph.ir import Attr, Graph, Kind, Op, Value

TARGETS = "targets"


def training_graph(graph: Graph) -> Graph:
    """Forward and backward of a decoder: stages `layers.0.grad` and so on follow the forward ones, last layer first.

    Every row is a target: give Sizes with R = T. Raises UnsupportedError for an op that has no rule.
    """
    return _Backward(graph).run()


@dataclass(slots=True)
class _Backward:
    graph: Graph
    values: dict[str, Value] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)
    stage: str = ""

    def run(self) -> Graph:
        """Build it."""
        self.values = {n: v for n, v in self.graph.values.items() if n not in ("sampling", "next_tokens")}
        forward = [op for op in self.graph.ops if op.kind != "sample"]
        self.ops = list(forward)
        self.values[TARGETS] = Value(TARGETS, (Symbol.R,), DType.I32, Kind.INPUT)
        logits = next(op.inputs[0] for op in self.graph.ops if op.kind == "sample")
        self.stage = f"{self.graph.ops[-1].stage}.grad"
        self._give(logits, self._op("loss_dx", "loss", (logits, TARGETS), self.values[logits].shape))
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

    def gradient(self, name: str) -> str:
        """The gradient of a value: the sum of what its readers gave."""
        parts = self.parts[name]
        total = parts[0]
        for n, part in enumerate(parts[1:]):
            total = self._op("add", f"sum {n} of {_last(name)}", (total, part), self.values[name].shape)
        return total

    def _give(self, name: str, gradient: str) -> None:
        self.parts.setdefault(name, []).append(gradient)

    def _op(self, kind: str, name: str, inputs: tuple[str, ...], shape: Shape, **attrs: Attr) -> str:
        full = f"{self.stage}/{name}"
        like = next(self.values[n].dtype for n in inputs if self.values[n].dtype.is_float)
        self.values[full] = Value(full, shape, like, Kind.TENSOR)
        self.ops.append(Op(kind, full, self.stage, inputs, (full,), MappingProxyType(dict(attrs))))
        return full

    def _weight(self, kind: str, op: Op, weight: str, inputs: tuple[str, ...], **attrs: Attr) -> None:
        """The gradient of a weight; a tied weight has one from each use."""
        name = self._op(kind, f"{_short(op)}.{weight}", inputs, self.values[weight].shape, **attrs)
        made = self.values[name]
        self.values[name] = Value(name, made.shape, made.dtype, Kind.OUTPUT)

    def linear(self, op: Op) -> None:
        """dx = dy w, dw = dy^T x."""
        x, weight, bias = op.inputs
        dy = self.gradient(op.outputs[0])
        self._give(x, self._op("linear_dx", f"{_short(op)}.dx", (dy, weight), self.values[x].shape))
        self._weight("linear_dw", op, weight, (dy, x))
        if bias:
            self._weight("bias_dw", op, bias, (dy,))

    def rms_norm(self, op: Op) -> None:
        """Of x and of the weight."""
        x, weight = op.inputs
        dy, eps = self.gradient(op.outputs[0]), op.number("eps")
        shape = self.values[x].shape
        self._give(x, self._op("rms_norm_dx", f"{_short(op)}.dx", (dy, x, weight), shape, eps=eps))
        self._weight("rms_norm_dw", op, weight, (dy, x), eps=eps)

    def rope(self, op: Op) -> None:
        """Turned back."""
        dy = self.gradient(op.outputs[0])
        shape, scale = self.values[op.inputs[0]].shape, op.number("scale")
        self._give(op.inputs[0], self._op("rope_dx", f"{_short(op)}.dx", (dy, *op.inputs[1:]), shape, scale=scale))

    def attention(self, op: Op) -> None:
        """Of q, k and v; k and v are those that this layer appended."""
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
        """The same for both."""
        dy = self.gradient(op.outputs[0])
        for name in op.inputs:
            self._give(name, dy)

    def mul(self, op: Op) -> None:
        """Each times the other."""
        dy, (a, b) = self.gradient(op.outputs[0]), op.inputs
        for name, other, side in ((a, b, "da"), (b, a, "db")):
            self._give(name, self._op("mul", f"{_short(op)}.{side}", (dy, other), self.values[name].shape))

    def silu(self, op: Op) -> None:
        """By its slope."""
        dy, x = self.gradient(op.outputs[0]), op.inputs[0]
        self._give(x, self._op("silu_dx", f"{_short(op)}.dx", (dy, x), self.values[x].shape))

    def take_rows(self, op: Op) -> None:
        """Put back."""
        dy, (x, rows) = self.gradient(op.outputs[0]), op.inputs
        self._give(x, self._op("take_rows_dx", f"{_short(op)}.dx", (dy, rows), self.values[x].shape))

    def embed(self, op: Op) -> None:
        """Rows of the table."""
        tokens, table = op.inputs
        self._weight("embed_dw", op, table, (self.gradient(op.outputs[0]), tokens))

    def nothing(self, op: Op) -> None:
        """What it stores is attended to by an op that has its operands."""


def _short(op: Op) -> str:
    return _last(op.name)


def _last(name: str) -> str:
    return name.rsplit("/", maxsplit=1)[-1]


_Rule: TypeAlias = Callable[[_Backward, Op], None]
RULES: Mapping[str, _Rule] = {
    "embed": _Backward.embed,
    "rms_norm": _Backward.rms_norm,
    "linear": _Backward.linear,
    "rope": _Backward.rope,
    "kv_append": _Backward.nothing,
    "attention": _Backward.attention,
    "add": _Backward.add,
    "mul": _Backward.mul,
    "silu": _Backward.silu,
    "take_rows": _Backward.take_rows,
}

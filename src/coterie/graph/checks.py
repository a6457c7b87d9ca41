"""Row: one op under verification, with the checks that many ops share and the error that they raise.

Knows nothing about which op needs which checks (legal.py, eager/legal.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Dim, Shape, Symbol, Times, fixed, trailing
from coterie.graph.delta_net.ops import STATES
from coterie.graph.ir import Graph, Kind, Op, Value, state_of
from coterie.graph.latent.ops import APPEND, ATTEND
from coterie.graph.ops import ATTENTION, BF16, CAP, GROWTH, GROWTH_STEP, HORIZON, OPS, ROUNDING, SCALE, TYPES

T, B, R = Symbol.T, Symbol.B, Symbol.R
GELU_FORMS = ("erf", "tanh", "sigmoid")
INSTEAD: Mapping[tuple[str, str], tuple[str, ...]] = {  # row inputs allowed for an operand besides its namesake
    ("embed", "tokens"): ("positions", TYPES),
    ("attention", "positions"): (HORIZON,),
    ("relative_attention", "positions"): (HORIZON,),
}
ROWS = (T, R, Symbol.S, Symbol.TS)  # allowed first dimensions of an activation, besides rows per sequence


def int_dims(shape: Shape) -> tuple[int, int]:
    """The second and third dimensions; 0 for a symbolic one."""
    first, second = (dim if isinstance(dim, int) else 0 for dim in shape[1:3])
    return first, second


@dataclass(frozen=True, slots=True)
class Row:
    """One op under verification. The checks raise UsageError; each docstring states what must hold."""

    graph: Graph
    op: Op

    def error(self, fact: str, remedy: str) -> UsageError:
        """The error to raise, which names the graph and the op."""
        return UsageError(f"{self.graph.name}: {self.op.name}", f"{self.op.kind}: {fact}", remedy)

    def check_signature(self) -> None:
        """The op is in the table, and has the operands and attributes that the table says."""
        spec = OPS.get(self.op.kind)
        if spec is None:
            raise self.error("this op is not in the table", f"use one of {', '.join(OPS)}")
        inputs = spec.operands(len(self.op.inputs))
        sides = (("inputs", inputs, self.op.inputs), ("outputs", spec.outputs, self.op.outputs))
        for what, wanted, given in sides:
            if len(wanted) != len(given):
                raise self.error(f"it has {len(given)} {what} but takes {len(wanted)}", f"give {', '.join(wanted)}")
        for operand, name in zip((*inputs, *spec.outputs), (*self.op.inputs, *self.op.outputs), strict=True):
            label, _, _ = operand.partition(":")
            if not name and not label.endswith("?"):
                raise self.error(f"operand {label} is missing", "only operands marked ? may be left out")
            if name and name not in self.graph.values:
                raise self.error(f"operand {label} names {name}, which is not declared", "declare the value")
        allowed = {name.removesuffix("?") for name in spec.attrs}
        needed = {name for name in spec.attrs if not name.endswith("?")}
        if not needed <= set(self.op.attrs) <= allowed:
            found = ", ".join(sorted(self.op.attrs)) or "none"
            raise self.error(f"its attributes are {found}", f"give {', '.join(spec.attrs) or 'none'}")

    def check_layer_order(self, appended: set[tuple[str, int, int]]) -> None:
        """The state is threaded through: a layer's k and v are appended once, and read only after that.

        A layer of a recurrent state is changed once. `appended` collects what this step has stored so far.
        """
        if self.op.inputs and self.op.inputs[-1] in STATES:
            changed = self.op.inputs[-1], self.op.integer("layer"), 0
            if changed in appended:
                fact = f"layer {changed[1]} of {changed[0]} is changed twice in one step"
                raise self.error(fact, "give each layer of the state one op")
            appended.add(changed)
        if self.op.kind not in ("kv_append", "kv_cat", *ATTENTION, APPEND, ATTEND):
            return
        state, layer = state_of(self.graph, self.op).name, self.op.integer("layer")
        which = (self.op.integer("which"),) if self.op.kind == "kv_cat" else (0, 1)
        parts = {(state, layer, one) for one in which}
        if self.op.kind in ("kv_append", "kv_cat", APPEND):
            if parts & appended:
                raise self.error(
                    f"layer {layer} of {state} is appended to twice in one step", "give each layer of the state one op"
                )
            appended |= parts
        elif not parts <= appended:
            fact = f"layer {layer} of {state} is read before this step's tokens are in it"
            raise self.error(fact, "store them first")
        elif HORIZON in self.op.inputs:
            appended -= parts  # never read again, so the next layer may overwrite them

    def gelu_form(self) -> None:
        """The form of a gelu is one of GELU_FORMS."""
        if (form := self.op.attrs["form"]) not in GELU_FORMS:
            raise self.error(f"its form is {form!r}", f"give one of {', '.join(GELU_FORMS)}")

    def eps(self) -> None:
        """A norm's eps is not negative."""
        if self.op.number("eps") < 0:
            raise self.error(f"eps is {self.op.number('eps')}", "it must not be negative")

    def cap(self) -> None:
        """The cap, if there is one, is a number above 0."""
        cap = self.op.attrs.get(CAP, 1.0)
        if not isinstance(cap, int | float) or not 0 < cap < math.inf:
            raise self.error(f"its cap is {cap!r}", "give a number above 0")

    def growth(self) -> None:
        """The growth of queries, if there is one, is a number above 0, in steps of a whole number of tokens."""
        if {GROWTH, GROWTH_STEP}.isdisjoint(self.op.attrs):
            return
        growth, step = self.op.attrs.get(GROWTH), self.op.attrs.get(GROWTH_STEP)
        grows = isinstance(growth, int | float) and 0 < growth < math.inf
        if not grows or type(step) is not int or step < 1:
            fact = f"its growth is {growth!r} every {step!r}"
            raise self.error(fact, "give a number above 0 and a number of tokens, or neither")

    def input(self, position: int) -> Value:
        """The operand at this position."""
        return self.graph.values[self.op.inputs[position]]

    @property
    def output(self) -> Value:
        """The op's first output."""
        return self.graph.values[self.op.outputs[0]]

    def activations(self, *values: Value) -> None:
        """All values have the same float type."""
        first = values[0]
        for value in values:
            if value.dtype is not first.dtype or not value.dtype.is_float:
                fact = f"{value.name} is {value.dtype.value} and {first.name} {first.dtype.value}"
                raise self.error(fact, "give the activations of an op one type, F32, F16 or BF16")

    def rows(self, *values: Value, first: tuple[Symbol, ...] = ROWS) -> None:
        """The first dimension is one of `first` (by default also rows per sequence), the others are numbers."""
        for value in values:
            free = first is ROWS and value.shape and isinstance(value.shape[0], Times)
            if not value.shape or not (free or value.shape[0] in first):
                letters = " or ".join(map(repr, first))
                raise self.error(f"{value.name} has shape {value.shape}", f"its first dimension must be {letters}")
            self.fixed(value.shape[1:], value)

    def float_rows(self, *values: Value, first: tuple[Symbol, ...] = ROWS) -> None:
        """`rows` and `activations`, both."""
        self.rows(*values, first=first)
        self.activations(*values)

    def like(self, *values: Value, first: tuple[Symbol, ...] = ROWS) -> None:
        """The output and all `values` have the same shape and the same float type."""
        self.float_rows(*values, self.output, first=first)
        for value in (*values[1:], self.output):
            self.same(value.shape, values[0].shape, value.name)

    def grouped(self, value: Value, group: int) -> int:
        """The rows of `value` come in groups of `group`, a whole number per sequence, which is returned."""
        rows = value.shape[0].rows if isinstance(value.shape[0], Times) else 0
        if group < 1 or not rows or rows % group:
            fact = f"{value.name} has shape {value.shape}, which is not in groups of {group} rows"
            raise self.error(fact, "give each sequence a multiple of them")
        return rows // group

    def heads(self, *values: Value) -> tuple[int, int]:
        """All values are [rows, heads, channels]; returns heads and channels of the last one."""
        for value in values:
            if len(value.shape) != 3:
                raise self.error(f"{value.name} has shape {value.shape}", "give rows, heads and channels")
        return int_dims(values[-1].shape)

    def fixed(self, dims: Shape, value: Value) -> None:
        """All `dims` are positive numbers."""
        if not all(isinstance(dim, int) and dim > 0 for dim in dims):
            raise self.error(f"{value.name} has shape {value.shape}", "its sizes must be numbers above zero")

    def weight(self, position: int, shape: Shape, matrix: bool = False, sparse: bool = False) -> None:
        """The operand is a weight of this shape, of a type that kernels read; only a matrix may be packed or sparse."""
        value = self.input(position)
        if value.density != 1.0 and not (sparse and value.dtype.is_float and 0 < value.density < 1):
            fact = f"{value.name}, {value.dtype.value}, has a density of {value.density:g}"
            raise self.error(fact, "give 1, or in a linear's weight of a float type a share between 0 and 1")
        fits = value.dtype.is_float or (matrix and (value.dtype.is_packed or value.dtype is DType.F8_E4M3))
        if value.kind is not Kind.WEIGHT or not fits:
            types = "F32, F16, BF16, F8_E4M3, Q8, Q6, Q4, Q4Z, Q2 or MX4" if matrix else "F32, F16 or BF16"
            raise self.error(f"{value.name} is {value.kind.value} {value.dtype.value}", f"give a weight {types}")
        self.fixed(value.shape, value)
        self.same(value.shape, shape, value.name)

    def weight_or_constant(self, position: int, shape: Shape) -> None:
        """The operand is a weight or a constant of this shape."""
        value = self.input(position)
        if value.kind is not Kind.CONSTANT:
            self.weight(position, shape)
            return
        self.same(value.shape, shape, value.name)
        self.constant(position, trailing((T, *shape)))

    def row_input(self, position: int, symbol: Symbol, dtype: DType = DType.I32) -> None:
        """The operand is the row input of the same name: devices and the reference bind rows by name (ROW_INPUTS).

        Embeddings may also look up other rows, and bidirectional attention reads the horizon (INSTEAD).
        """
        value = self.input(position)
        label, _, _ = OPS[self.op.kind].inputs[position].partition(":")
        if value.name not in (label, *INSTEAD.get((self.op.kind, label), ())):
            raise self.error(f"operand {label} is {value.name}", f"give the row input {label}")
        if value.kind is not Kind.INPUT or value.dtype is not dtype:
            raise self.error(f"{value.name} is {value.kind.value} {value.dtype.value}", f"give an input {dtype.value}")
        self.same(value.shape[:1], (symbol,), value.name)

    def same(self, found: tuple[Dim, ...], wanted: tuple[Dim, ...], name: str) -> None:
        """The value `name` has the wanted shape."""
        if found != wanted:
            raise self.error(f"{name} has shape {found}, wanted is {wanted}", "make them agree")

    def scale(self) -> None:
        """The scale, if there is one, is a finite number other than 0."""
        scale = self.op.attrs.get(SCALE, 1.0)
        if not isinstance(scale, int | float) or not math.isfinite(scale) or not scale:
            raise self.error(f"its scale is {scale!r}", "give a number other than 0, or leave it out")

    def rounding(self, weight: Value, *packed: str) -> None:
        """The rounding, if there is one, is one of `packed` for a packed weight, and BF16 for a bfloat16 one.

        `weight` may also be the state of cached keys and values.
        """
        said = self.op.attrs.get(ROUNDING)
        fits = said in packed if weight.dtype.is_packed else said == BF16 and weight.dtype is DType.BF16
        if said is not None and not fits:
            fact = f"{ROUNDING} is {said!r} for {weight.name} of type {weight.dtype.value}"
            ways = f"{', '.join(map(repr, packed[:-1]))} or {packed[-1]!r}" if packed else ""
            packed_options = f"{ways}, where the weight is packed, or " if packed else ""
            raise self.error(fact, f"give {packed_options}{BF16!r}, where it is BF16")

    def constant(self, position: int, count: int) -> None:
        """The operand is a constant of `count` numbers."""
        value = self.input(position)
        if value.kind is not Kind.CONSTANT or len(value.data) != count:
            raise self.error(f"{value.name} has {len(value.data)} numbers", f"give a constant of {count}")

    def state(self, position: int) -> tuple[int, int]:
        """The operand is a KV state [L, 2, K, C] that has the op's layer; returns its heads and channels."""
        value = self.input(position)
        if value.kind is not Kind.STATE or len(value.shape) != 4 or value.shape[1] != 2 or not value.dtype.is_kept:
            raise self.error(f"{value.name} is {value.kind.value} {value.shape}", "give a float state [L, 2, K, C]")
        _, heads, channels = self.layer_shape(value)
        return heads, channels

    def layer_shape(self, state: Value) -> tuple[int, ...]:
        """The state has the op's layer; returns its dimensions after the layers."""
        self.fixed(state.shape, state)
        layers, *rest = fixed(state.shape)
        if not 0 <= self.op.integer("layer") < layers:
            fact = f"layer {self.op.integer('layer')} is not among the {layers} of {state.name}"
            raise self.error(fact, "give a layer of the state")
        return tuple(rest)

    def appends(self, position: int) -> None:
        """The op's last output is the state that it changes, this operand."""
        if self.op.outputs[-1] != self.op.inputs[position]:
            fact = f"it puts out {self.op.outputs[-1]} but appends to {self.op.inputs[position]}"
            raise self.error(fact, "thread it through")


def unary(row: Row) -> None:
    """Check that the result has the shape and type of the first operand."""
    row.like(row.input(0))


def binary(row: Row) -> None:
    """Check that two operands and the result have the same shape and type."""
    row.like(row.input(0), row.input(1))

"""Legality: a row per op says which operands, shapes, types and attributes it takes; graphs are checked first of all.

Knows nothing about fusion or devices. The meaning of each op is in ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Dim, Shape, Symbol, trailing
from coterie.graph.ir import Graph, Kind, Op, Value
from coterie.graph.ops import OPS

T, B, R = Symbol.T, Symbol.B, Symbol.R


def verify(graph: Graph) -> None:
    """Check every op in order. Raises UsageError naming the op, the operand and both sizes."""
    made = {name for name, value in graph.values.items() if value.kind not in (Kind.TENSOR, Kind.OUTPUT)}
    names: set[str] = set()
    appended: set[int] = set()
    for op in graph.ops:
        row = _Row(graph, op)
        if op.name in names:
            raise row.wrong("the name is used by an op above", "give each op its own name")
        names.add(op.name)
        row.check_signature()
        for name in op.inputs:
            if name and name not in made:
                raise row.wrong(f"input {name} is read before it is made", "put the op that makes it first")
        LEGAL[op.kind](row)
        row.check_layer_order(appended)
        for name in op.outputs:
            state = graph.values[name].kind is Kind.STATE
            if name in made and not state:
                raise row.wrong(f"output {name} is made twice", "give each result its own value")
            made.add(name)


@dataclass(frozen=True, slots=True)
class _Row:
    """One op under examination: operands by position, and the sentence for what is wrong."""

    graph: Graph
    op: Op

    def wrong(self, fact: str, remedy: str) -> UsageError:
        return UsageError(f"{self.graph.name}: {self.op.name}", f"{self.op.kind}: {fact}", remedy)

    def check_signature(self) -> None:
        """The op is in the table, with as many operands and just the attributes that the table says."""
        spec = OPS.get(self.op.kind)
        if spec is None:
            raise self.wrong("this op is not in the table", f"use one of {', '.join(OPS)}")
        sides = (("inputs", spec.inputs, self.op.inputs), ("outputs", spec.outputs, self.op.outputs))
        for what, wanted, given in sides:
            if len(wanted) != len(given):
                raise self.wrong(f"it has {len(given)} {what} but takes {len(wanted)}", f"give {', '.join(wanted)}")
        for operand, name in zip((*spec.inputs, *spec.outputs), (*self.op.inputs, *self.op.outputs), strict=True):
            label, _, _ = operand.partition(":")
            if not name and not label.endswith("?"):
                raise self.wrong(f"operand {label} is missing", "only operands marked ? may be left out")
            if name and name not in self.graph.values:
                raise self.wrong(f"operand {label} names {name}, which is not declared", "declare the value")
        if set(spec.attrs) != set(self.op.attrs):
            found = ", ".join(sorted(self.op.attrs)) or "none"
            raise self.wrong(f"its attributes are {found}", f"give {', '.join(spec.attrs) or 'none'}")

    def check_layer_order(self, appended: set[int]) -> None:
        """The state is threaded through: a layer is appended to once, and attended to only after that."""
        if self.op.kind not in ("kv_append", "attention"):
            return
        layer = self.op.integer("layer")
        if self.op.kind == "kv_append" and layer in appended:
            raise self.wrong(f"layer {layer} is appended to twice in one step", "give each layer of the state one op")
        if self.op.kind == "attention" and layer not in appended:
            raise self.wrong(f"layer {layer} is read before this step's tokens are in it", "put kv_append first")
        appended.add(layer)

    def input(self, position: int) -> Value:
        return self.graph.values[self.op.inputs[position]]

    @property
    def output(self) -> Value:
        return self.graph.values[self.op.outputs[0]]

    def activations(self, *values: Value) -> None:
        """Activations are of one float type."""
        first = values[0]
        for value in values:
            if value.dtype is not first.dtype or not value.dtype.is_float:
                fact = f"{value.name} is {value.dtype.value} and {first.name} {first.dtype.value}"
                raise self.wrong(fact, "give the activations of an op one type, F32, F16 or BF16")

    def rows(self, *values: Value, first: tuple[Symbol, ...] = (T, R)) -> None:
        """The first dimension is a symbol, the rest are numbers above zero."""
        for value in values:
            if not value.shape or value.shape[0] not in first:
                letters = " or ".join(map(repr, first))
                raise self.wrong(f"{value.name} has shape {value.shape}", f"its first dimension must be {letters}")
            self.fixed(value.shape[1:], value)

    def fixed(self, dims: Shape, value: Value) -> None:
        if not all(isinstance(dim, int) and dim > 0 for dim in dims):
            raise self.wrong(f"{value.name} has shape {value.shape}", "its sizes must be numbers above zero")

    def weight(self, position: int, shape: Shape, matrix: bool = False) -> None:
        """A weight of exactly this shape, of a type that kernels read; only a matrix may be packed."""
        value = self.input(position)
        fits = value.dtype.is_float or (matrix and value.dtype.is_packed)
        if value.kind is not Kind.WEIGHT or not fits:
            types = "F32, F16, BF16, Q8 or Q4" if matrix else "F32, F16 or BF16"
            raise self.wrong(f"{value.name} is {value.kind.value} {value.dtype.value}", f"give a weight {types}")
        self.fixed(value.shape, value)
        self.same(value.shape, shape, value.name)

    def row_input(self, position: int, symbol: Symbol, dtype: DType = DType.I32) -> None:
        """A row of the step. Its name is the operand's: devices and the reference bind rows by name (ROW_INPUTS)."""
        value = self.input(position)
        label, _, _ = OPS[self.op.kind].inputs[position].partition(":")
        if value.name != label:
            raise self.wrong(f"operand {label} is {value.name}", f"give the row input {label}")
        if value.kind is not Kind.INPUT or value.dtype is not dtype:
            raise self.wrong(f"{value.name} is {value.kind.value} {value.dtype.value}", f"give an input {dtype.value}")
        self.same(value.shape[:1], (symbol,), value.name)

    def same(self, found: tuple[Dim, ...], wanted: tuple[Dim, ...], name: str) -> None:
        if found != wanted:
            raise self.wrong(f"{name} has shape {found}, wanted is {wanted}", "make them agree")

    def state(self, position: int) -> tuple[int, int, int]:
        """The KV state [L, 2, K, C]: its layers, heads and channels; the op's layer is one of them."""
        value = self.input(position)
        if value.kind is not Kind.STATE or len(value.shape) != 4 or value.shape[1] != 2 or not value.dtype.is_float:
            raise self.wrong(f"{value.name} is {value.kind.value} {value.shape}", "give a float state [L, 2, K, C]")
        self.fixed(value.shape, value)
        layers, _, heads, channels = (int(dim) for dim in value.shape if isinstance(dim, int))
        if not 0 <= self.op.integer("layer") < layers:
            raise self.wrong(f"layer {self.op.integer('layer')} is not among the {layers} of {value.name}", "mend it")
        return layers, heads, channels


def _embed(row: _Row) -> None:
    row.row_input(0, T)
    row.rows(row.output, first=(T,))
    table = row.input(1)
    row.fixed(table.shape, table)
    if len(table.shape) != 2:
        raise row.wrong(f"{table.name} has shape {table.shape}", "a table has rows and columns")
    row.weight(1, (table.shape[0], *row.output.shape[1:]), matrix=True)
    row.activations(row.output)


def _rms_norm(row: _Row) -> None:
    x = row.input(0)
    row.rows(x, row.output)
    row.activations(x, row.output)
    row.same(row.output.shape, x.shape, row.output.name)
    row.weight(1, x.shape[-1:])
    if row.op.number("eps") < 0:
        raise row.wrong(f"eps is {row.op.number('eps')}", "it must not be negative")


def _linear(row: _Row) -> None:
    x, y = row.input(0), row.output
    row.rows(x, y)
    row.activations(x, y)
    row.same(y.shape[:1], x.shape[:1], y.name)
    row.weight(1, (trailing(y.shape), trailing(x.shape)), matrix=True)
    if row.op.inputs[2]:
        row.weight(2, (trailing(y.shape),))


def _rope(row: _Row) -> None:
    x, frequencies = row.input(0), row.input(2)
    row.rows(x, row.output, first=(T,))
    row.activations(x, row.output)
    row.same(row.output.shape, x.shape, row.output.name)
    row.row_input(1, T)
    channels = x.shape[-1]
    if len(x.shape) != 3 or not isinstance(channels, int) or channels % 2:
        raise row.wrong(f"{x.name} has shape {x.shape}", "give [T, heads, channels] with an even number of channels")
    if frequencies.kind is not Kind.CONSTANT or len(frequencies.data) != channels // 2:
        raise row.wrong(f"{frequencies.name} has {len(frequencies.data)} numbers for {channels} channels", "give half")


def _kv_append(row: _Row) -> None:
    k, v = row.input(0), row.input(1)
    _, heads, channels = row.state(5)
    row.activations(k, v)
    for value in (k, v):
        row.same(value.shape, (T, heads, channels), value.name)
    _pages(row, 2)
    if row.op.outputs[0] != row.op.inputs[5]:
        raise row.wrong(f"it puts out {row.op.outputs[0]} but appends to {row.op.inputs[5]}", "thread it through")


def _attention(row: _Row) -> None:
    q = row.input(0)
    _, heads, channels = row.state(4)
    row.rows(q, row.output, first=(T,))
    row.activations(q, row.output)
    row.same(row.output.shape, q.shape, row.output.name)
    row.same(q.shape[2:], (channels,), q.name)
    queries = q.shape[1]
    if not isinstance(queries, int) or queries % heads:
        raise row.wrong(f"{queries} query heads share {heads} key/value heads", "make one a multiple")
    _pages(row, 1)
    if row.op.integer("window") < 0:
        raise row.wrong(f"window is {row.op.integer('window')}", "give 0 (none) or a number of tokens")


def _pages(row: _Row, first: int) -> None:
    for position, symbol in ((first, T), (first + 1, T), (first + 2, B)):
        row.row_input(position, symbol)


def _binary(row: _Row) -> None:
    a, b = row.input(0), row.input(1)
    row.rows(a, b, row.output)
    row.activations(a, b, row.output)
    row.same(b.shape, a.shape, b.name)
    row.same(row.output.shape, a.shape, row.output.name)


def _unary(row: _Row) -> None:
    x = row.input(0)
    row.rows(x, row.output)
    row.activations(x, row.output)
    row.same(row.output.shape, x.shape, row.output.name)


def _take_rows(row: _Row) -> None:
    x = row.input(0)
    row.rows(x, first=(T,))
    row.rows(row.output, first=(R,))
    row.activations(x, row.output)
    row.row_input(1, R)
    row.same(row.output.shape[1:], x.shape[1:], row.output.name)


def _sample(row: _Row) -> None:
    logits = row.input(0)
    row.rows(logits, first=(R,))
    row.activations(logits)
    row.row_input(1, R, DType.F32)
    row.same(row.output.shape, (R,), row.output.name)
    if len(logits.shape) != 2 or row.output.kind is not Kind.OUTPUT or row.output.dtype is not DType.I32:
        raise row.wrong(f"it draws {row.output.dtype.value} from {logits.shape}", "give [R, V] and an I32 output [R]")
    tables = [row.graph.values[op.inputs[1]] for op in row.graph.ops if op.kind == "embed"]
    for table in tables:  # a drawn token is the next one to embed
        rows, vocab = trailing((T, table.shape[0])), trailing(logits.shape)
        if rows < vocab:
            raise row.wrong(f"{vocab} tokens may be drawn but {table.name} has {rows} rows", "give each token a row")


LEGAL: Mapping[str, Callable[[_Row], None]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "kv_append": _kv_append,
    "attention": _attention,
    "add": _binary,
    "silu": _unary,
    "mul": _binary,
    "take_rows": _take_rows,
    "sample": _sample,
}

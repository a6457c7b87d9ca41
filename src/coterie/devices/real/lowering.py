"""Helpers for lowering: addresses and sizes of a program's values, and groups of operands that several regions share.

Knows nothing about which operands an instruction has (lower.py, lower_branches.py, lower_delta_net.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Dim, Times, trailing
from coterie.devices.real.operands import F32, PAGE_NAMES, Named, Operand, Operands, Stored, Weight, Weights
from coterie.graph.ir import Kind, Op, Value, state_of
from coterie.graph.ops import BF16, INT8, INT8_OR_FINER, OPS, ROUNDING
from coterie.graph.program import Program
from coterie.kernels import cpu as kernels


@dataclass(frozen=True, slots=True)
class Seen:
    """What an op reads: a value from element `first` on, with a row stride of `step` elements; 0: contiguous."""

    name: str
    first: int = 0
    step: int = 0


@dataclass(slots=True)
class Lowering:
    """Resolves operands in a program. `device`: its name in error messages.

    `address` maps a constant to its device address; the user of the rows must keep `constants` alive.
    `rounds`: round activations to 8 bits where the graph permits that.
    """

    program: Program
    device: str
    address: Callable[[F32], int] = kernels.address
    constants: dict[str, F32] = field(default_factory=dict)
    rounds: bool = True
    _index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._index = {name: i for i, name in enumerate(self.program.weights)}

    def value(self, name: str) -> Value:
        """A value of the graph."""
        return self.program.graph.values[name]

    def at(self, name: str) -> Operand:
        """The address of a value; 0 for an absent optional one."""
        if not name:
            return 0
        value = self.value(name)
        if value.kind is Kind.WEIGHT:
            return Weight(self._index[name])
        if value.kind is Kind.CONSTANT:
            data = self.constants.setdefault(name, np.array(value.data, dtype=np.float32))
            return self.address(data)
        if value.kind is Kind.INPUT:
            return Named(name)
        return Stored(name)

    def seen(self, ops: Sequence[Op]) -> tuple[Seen, Sequence[Op]]:
        """Resolve a leading view: what the first other op reads through it, and the ops without the view.

        Raises UnsupportedError for a view that has no single row stride.
        """
        view = ops[0]
        if not OPS[view.kind].view:
            return Seen(view.inputs[0]), ops
        channels = trailing((0, *self.value(view.outputs[0]).shape[-1:]))
        if view.kind != "take_heads" or view.integer("count") != 1:
            fact = f"{view.name} shows {view.attrs.get('count')} neighbouring heads, which {self.device} does not read"
            raise UnsupportedError(self.program.graph.name, fact, "use a modelled machine")
        return Seen(view.inputs[0], view.integer("first") * channels, view.integer("of") * channels), ops[1:]

    def table(self, names: Sequence[str]) -> Weights:
        """A table of weight addresses, in this order."""
        return Weights(tuple(self._index[name] for name in names))

    def size(self, dim: Dim) -> Operand:
        """A dimension: a number, or a symbol that the run binds."""
        if isinstance(dim, Times):
            fact = f"rows of {dim} are not supported by {self.device}"
            raise UnsupportedError(self.program.graph.name, fact, "use a text model")
        return dim if isinstance(dim, int) else Named(dim.value)

    def weight(self, operand: str, name: str, rounded: bool = False) -> Operands:
        """A weight's address and dtype; `rounded`: the activations it is multiplied by are rounded first."""
        if name and self.value(name).density != 1.0:
            fact = f"{name} is sparse ({self.value(name).density:.1%} of its elements), which no real kernel reads"
            raise UnsupportedError(self.program.graph.name, fact, "use a modelled machine, or dense weights")
        dtype = kernels.dtype_number(self.value(name).dtype if name else DType.F32, rounded)
        return {operand: self.at(name), f"{operand}_dtype": dtype}

    def pages(self, append: Op, positions: str, sequence: str, tables: str) -> Operands:
        """The operands that locate keys and values in the paged KV cache."""
        names = {"positions": positions, "sequence": sequence, "block_tables": tables}
        paged: Operands = {operand: self.at(name) for operand, name in names.items()}
        paged |= {name: Named(name) for name in PAGE_NAMES}
        layer = self.program.page_layer(append)
        rounded = append.kind == "attention" and ROUNDING in append.attrs
        return paged | {"kv_dtype": kernels.dtype_number(self.program.kv.dtype, rounded), "layer": layer}

    def kv_heads(self, op: Op) -> Operand:
        """Number of KV heads of the op's layer."""
        return self.size(state_of(self.program.graph, op).shape[2])

    def rotated(self, rope: Op) -> int:
        """Number of channels per head that are rotated."""
        return 2 * len(self.value(rope.inputs[2]).data)

    def turns(self, rope: Op | None) -> Operands:
        """A fused region's rotation operands; zeros without a rope."""
        if rope is None:
            return {"inv_freq": 0, "scale": 1.0, "rotated": 0, "interleaved": 0}
        how = {"rotated": self.rotated(rope), "interleaved": int(rope.interleaved)}
        return {"inv_freq": self.at(rope.inputs[2]), "scale": rope.number("scale"), **how}

    def linear(self, op: Op) -> Operands:
        """All operands of a linear: x, weight, bias, y and sizes."""
        x = op.inputs[0]
        shape = self.value(op.outputs[0]).shape
        sizes: Operands = {"T": self.size(shape[0]), "N": trailing(shape), "K": trailing(self.value(x).shape)}
        sizes["scale"] = op.scale
        ends = {"x": self.at(x), "y": self.at(op.outputs[0])}
        return ends | self.projection("weight", "bias", op) | sizes

    def norm(self, op: Op) -> Operands:
        """Operands of the norm at the start of a fused region."""
        centred = op.kind == "layer_norm"
        how = {"eps": op.number("eps"), "offset": op.offset, "centred": int(centred)}
        weights = self.weight("norm", op.inputs[1]) | self.weight("norm_bias", op.inputs[2] if centred else "")
        return {"x": self.at(op.inputs[0]), **how, **weights}

    def norm_of(self, op: Op | None, x: str) -> Operands:
        """As `norm`, for an optional norm; without one, `x` is read unnormalised."""
        if op is not None:
            return self.norm(op)
        none = {"eps": 0.0, "offset": 0.0, "centred": 0} | self.weight("norm", "") | self.weight("norm_bias", "")
        return {"x": self.at(x), **none}

    def projection(self, operand: str, bias: str, op: Op) -> Operands:
        """Weight and bias of a linear."""
        rounding = op.attrs.get(ROUNDING)
        rounded = rounding in (INT8, BF16) or (rounding == INT8_OR_FINER and self.rounds)
        return self.weight(operand, op.inputs[1], rounded) | self.weight(bias, op.inputs[2])

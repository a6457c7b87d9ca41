"""Helpers with which all blocks of a decoder append to a graph: ops with one output, norms, linears, weights by name.

Knows nothing about which blocks there are (blocks.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.shapes import Shape, Symbol, trailing
from coterie.graph.ir import Attr, GraphBuilder, Kind
from coterie.graph.ops import OFFSET
from coterie.models.config import ModelConfig
from coterie.models.family import Norm


@dataclass(frozen=True, slots=True)
class Appending:
    """A graph under construction, for `config`; `dtypes` has the element type of each weight in the file.

    `activations` is the type in which a machine stores intermediates; real devices run F32.
    """

    config: ModelConfig
    dtypes: Mapping[str, DType]
    builder: GraphBuilder
    activations: DType = DType.F32

    def _op(self, kind: str, name: str, inputs: tuple[str, ...], shape: Shape | None = None, **attrs: Attr) -> str:
        """Append an op with one output of `shape` (by default [T, hidden]) and return the output's name."""
        b = self.builder
        y = b.value(f"{b.stage}/{name}", shape or (Symbol.T, self.config.hidden_size), self.activations, Kind.TENSOR)
        b.op(kind, name, inputs, (y,), **attrs)
        return y

    def _norm(self, name: str, x: str, prefix: str, all_heads: bool = False, offset: float | None = None) -> str:
        kind, shape = self.config.norm, self._shape(x)
        weight: Shape = (trailing(shape),) if all_heads else shape[-1:]
        inputs: tuple[str, ...] = (x, self._weight(prefix + ".weight", weight))
        if kind is Norm.LAYER:
            inputs = (*inputs, self._weight(prefix + ".bias", shape[-1:]) if self.config.norm_bias else "")
        added = self.config.norm_offset if offset is None else offset
        plus: dict[str, Attr] = {OFFSET: added} if added else {}
        return self._op(kind.value, name, inputs, shape, eps=self.config.norm_eps, **plus)

    def _linear(self, name: str, x: str, prefix: str, shape: Shape, bias: bool, scale: float = 1.0) -> str:
        rows, columns = trailing(shape), trailing(self._shape(x))
        weight = self._weight(prefix + ".weight", (rows, columns), self.config.density)
        inputs = (x, weight, self._weight(prefix + ".bias", (rows,)) if bias else "")
        return self._op("linear", name, inputs, shape, **scaled(scale * self.config.factors.get(name, 1.0)))

    def _weight(self, name: str, shape: Shape, density: float = 1.0) -> str:
        return self.builder.value(name, shape, self.dtypes[name], Kind.WEIGHT, density=density)

    def _shape(self, value: str) -> Shape:
        return self.builder.shape(value)

    def _rounded(self, scale: float, table: str) -> float:
        """A scale rounded to the type of a table, or of the norms if that is packed."""
        dtype = self.dtypes[table]
        dtype = dtype if dtype.is_float else self.dtypes[f"{self.config.names.norm}.weight"]
        return float(to_f32(from_f32(np.array([scale], np.float32), dtype), dtype)[0])


def scaled(factor: float) -> dict[str, Attr]:
    """The attribute `scale` of an op; none for a factor of 1, so that architecture keys without one are unchanged."""
    return {} if factor == 1.0 else {"scale": factor}

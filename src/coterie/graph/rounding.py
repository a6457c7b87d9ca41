"""The graph whose products round activations: for packed weights to int8 or, said aloud, int16; for bfloat16 to bf16.

And the graph that keeps keys and values in another type. Each is another architecture key, so experts with and without
do not share programs.

Knows nothing about how numbers are rounded (core.packed, core.scales, core.dtypes) or when that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from coterie.core.dtypes import DType
from coterie.graph.branch.ops import MATRICES_FROM, MATRIX_READERS
from coterie.graph.ir import Graph, Op
from coterie.graph.ops import BF16, INT16, ROUNDING
from coterie.graph.program import kv_states
from coterie.graph.rows import sees_all

_WEIGHT = {"linear": 1, **dict.fromkeys(MATRIX_READERS, MATRICES_FROM)}  # a weight's position, if all are of its type
_KEPT = {"attention": 4}  # the position of kept keys and values


def with_rounding(graph: Graph, to: str) -> Graph:
    """Every product with packed weights rounds what it reads `to` INT8 or INT16, or with bfloat16 ones to BF16.

    Products with other weights stay as they are. Where some round to BF16 and no weights are packed, so does attention
    over keys and values that are kept in bfloat16.
    """
    products = tuple(_rounding(graph, op, to) for op in graph.ops)
    is_packed = any(weight.dtype.is_packed for weight in graph.weights)
    if not is_packed and any(op.attrs.get(ROUNDING) == BF16 for op in products):
        products = tuple(_rounding(graph, op, to, _KEPT) for op in products)
    return replace(graph, ops=products)


def as_a_cpu_rounds(graph: Graph, attention: bool) -> Graph:
    """Every product with packed weights that does not say what it rounds to says INT16, which is what a CPU does.

    `attention`: whether the CPU rounds there what the graph says (kernels/cpu.py: `rounds_attention`).
    """
    ops = (op if ROUNDING in op.attrs else _rounding(graph, op, INT16) for op in graph.ops)
    return replace(graph, ops=tuple(op if attention or op.kind != "attention" else _exact(op) for op in ops))


def with_kept_kv(graph: Graph, dtype: DType) -> Graph:
    """Keys and values are kept as rows of this type.

    A graph stays as it is where no step reads what another kept: no layer attends, or tokens see all of their text.
    """
    if sees_all(graph) or not any(op.kind == "kv_append" for op in graph.ops):
        return graph
    kept = {state.name: replace(state, dtype=dtype) for state in kv_states(graph)}
    ops = graph.ops if dtype is DType.BF16 else tuple(_exact(op) if op.kind in _KEPT else op for op in graph.ops)
    return replace(graph, ops=ops, values=MappingProxyType({**graph.values, **kept}))


def _exact(op: Op) -> Op:
    return replace(op, attrs=MappingProxyType({name: attr for name, attr in op.attrs.items() if name != ROUNDING}))


def _rounding(graph: Graph, op: Op, to: str, positions: Mapping[str, int] = _WEIGHT) -> Op:
    weight = positions.get(op.kind)
    if weight is None or not _meets(graph.values[op.inputs[weight]].dtype, to):
        return op
    return replace(op, attrs=MappingProxyType({**op.attrs, ROUNDING: to}))


def _meets(dtype: DType, to: str) -> bool:
    return dtype is DType.BF16 if to == BF16 else dtype.is_packed

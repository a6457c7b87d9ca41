"""Graphs whose products round activations: to int8 or explicitly int16 for packed weights, to bf16 for bfloat16 ones.

Also graphs that keep keys and values in another type. Each variant has its own architecture key, so experts with and
without it do not share programs.

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
from coterie.graph.rows import is_bidirectional

_WEIGHT = {"linear": 1, **dict.fromkeys(MATRIX_READERS, MATRICES_FROM)}  # operand of a weight (the first)
_KEPT = {"attention": 4}  # operand of the cached keys and values


def with_rounding(graph: Graph, to: str) -> Graph:
    """Make products round their activations `to` INT8 or INT16 (those with packed weights) or BF16 (bfloat16 weights).

    Products with other weights are unchanged. If some round to BF16 and no weights are packed, attention over keys and
    values cached in bfloat16 rounds too.
    """
    products = tuple(_rounding(graph, op, to) for op in graph.ops)
    is_packed = any(weight.dtype.is_packed for weight in graph.weights)
    if not is_packed and any(op.attrs.get(ROUNDING) == BF16 for op in products):
        products = tuple(_rounding(graph, op, to, _KEPT) for op in products)
    return replace(graph, ops=products)


def as_a_cpu_rounds(graph: Graph, attention: bool) -> Graph:
    """Make a CPU's rounding explicit: products with packed weights that name no rounding use INT16.

    `attention`: whether the CPU's attention rounds as the graph says (kernels/cpu.py: `rounds_attention`).
    """
    ops = (op if ROUNDING in op.attrs else _rounding(graph, op, INT16) for op in graph.ops)
    return replace(graph, ops=tuple(op if attention or op.kind != "attention" else _exact(op) for op in ops))


def with_kept_kv(graph: Graph, dtype: DType) -> Graph:
    """The graph that caches keys and values in this type.

    Unchanged if no step reads what another one stored: no layer attends, or attention is bidirectional.
    """
    if is_bidirectional(graph) or not any(op.kind == "kv_append" for op in graph.ops):
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

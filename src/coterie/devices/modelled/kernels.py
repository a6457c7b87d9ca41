"""Decomposes a region into kernels that were measured on GPUs, and estimates its speed from the measurements.

    region   [linear linear linear]  [attention]  rest         linears that read the same input count as one GEMM
    time     GEMM                  + attention  + remaining bytes / achieved bandwidth
    share    roofline time of the whole region / that time

Knows nothing about lanes, launches or links.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import sqrt

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Dim, Sizes
from coterie.graph.branch.ops import MATRIX_READERS
from coterie.graph.cost import Cost, pairs_of
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.ops import ATTENTION
from coterie.graph.program import Program, Region
from coterie.spec.kernel import ELEMENT_WISE, GEMM, GEMM_FP8, GEMM_INT4, GEMM_INT8, Kernel
from coterie.spec.machine import MachineSpec
from coterie.spec.measured import (
    ANALYTIC,
    INTERPOLATED,
    MEASURED,
    TRANSFERRED,
    Kernels,
    Speed,
    ideal_s,
    kernels_of,
    measured_rows,
    one_unit,
)

ELEMENT_WISE_FLOPS = 8  # upper bound on FLOPs per byte of an element-wise kernel
_FAMILIES = {  # GEMM family by weight type; group-quantised integers use the measurements of coarser scales
    **{DType.BF16: GEMM, DType.F16: GEMM, DType.F8_E4M3: GEMM_FP8},
    **{DType.Q8: GEMM_INT8, DType.Q4: GEMM_INT4, DType.Q4Z: GEMM_INT4},
}
_RANK = (MEASURED, INTERPOLATED, TRANSFERRED, ANALYTIC)


class RegionKernels:
    """The GEMMs and attentions of a region, and its speed. `kernels`: replaces the measurements of the machine's GPU.

    Raises UsageError if the machine names unknown measurements.
    """

    def __init__(self, spec: MachineSpec, program: Program, region: Region, kernels: Kernels | None = None) -> None:
        self._known = kernels or _kernels(spec)
        self._device = _device(self._known.device)
        self._gemms: dict[tuple[str, str, Dim, int], int] | None = _gemms(program.graph, region)
        self._fp8_times = spec.fp8_times if is_fp8(program.graph, region) else 1.0
        self._attentions = [_Attention.of(program.graph, op) for op in region.ops if op.kind in ATTENTION]

    def of(self, sizes: Sizes) -> tuple[Kernel, ...] | None:
        """The region's kernels in a step of these sizes; None if a product is of a kind that was never measured."""
        if self._gemms is None:
            return None
        gemms = [Kernel(family, (sizes.of(rows), n, k)) for (family, _, rows, k), n in self._gemms.items()]
        return (*gemms, *[attention.of_sizes(sizes) for attention in self._attentions])

    def speed(self, cost: Cost, sizes: Sizes) -> Speed | None:
        """The share of the machine's physical peaks that it reaches; None if nothing comparable was measured."""
        parts, total_bytes = self.of(sizes), cost.total_bytes
        if parts is None or total_bytes == 0 or (not parts and cost.flops > ELEMENT_WISE_FLOPS * total_bytes):
            return None
        parts = parts or (Kernel(ELEMENT_WISE, (total_bytes, sizes.T)),)
        known = self._known
        total_s, covered_bytes, worst = 0.0, 0.0, 0
        for kernel in parts:
            speed = known.speed(kernel)
            if speed is None:
                return None
            total_s += ideal_s(known.device, kernel) / speed.util
            covered_bytes += kernel.bytes
            worst = max(worst, _RANK.index(speed.provenance))
        flops_per_s, bytes_per_s, share = self._device
        total_s += max(0.0, total_bytes - covered_bytes) / (bytes_per_s * share)
        ideal = max(cost.flops / (flops_per_s * self._fp8_times), total_bytes / bytes_per_s)
        return Speed(min(1.0, ideal / total_s), _RANK[worst])


def is_fp8(graph: Graph, region: Region) -> bool:
    """Whether all of a region's matrices are FP8, so that FP8 arithmetic can be used; never with attention."""
    weights = [graph.values[name] for op in region.ops for name in op.inputs if name]
    types = {one.dtype for one in weights if one.kind is Kind.WEIGHT and len(one.shape) > 1}
    return types == {DType.F8_E4M3} and not any(op.kind in ATTENTION for op in region.ops)


def not_measured(spec: MachineSpec, graphs: Iterable[Graph]) -> tuple[DType, ...]:
    """Weight types for which the machine's GPU has no measured GEMM; empty if the machine names no measurements."""
    if not spec.kernels:
        return ()
    known = {row.kernel.family for row in measured_rows(spec.kernels)}
    products = ((graph, op) for graph in graphs for op in graph.ops if op.kind == "linear" or op.kind in MATRIX_READERS)
    values = [graph.values[name] for graph, op in products for name in op.inputs[1:] if name]
    read = {value.dtype for value in values if value.kind is Kind.WEIGHT and len(value.shape) > 1}
    return tuple(sorted((one for one in read if _FAMILIES.get(one) not in known), key=lambda one: one.value))


def _gemms(graph: Graph, region: Region) -> dict[tuple[str, str, Dim, int], int] | None:
    """Output columns of each GEMM, by (family, input, rows, input columns). None for a weight type that no family has.

    None for mixture-of-experts products too, which were not measured.
    """
    found: dict[tuple[str, str, Dim, int], int] = {}
    for op in region.ops:
        if op.kind in MATRIX_READERS:
            return None
        if op.kind == "linear":
            weight, y = graph.values[op.inputs[1]], graph.values[op.outputs[0]]
            family = _FAMILIES.get(weight.dtype)
            if family is None:
                return None
            rows, columns = fixed(weight.shape[0]), fixed(weight.shape[1])
            key = (family, op.inputs[0], y.shape[0], columns)
            found[key] = found.get(key, 0) + rows
    return found


@dataclass(frozen=True, slots=True)
class _Attention:
    """An attention op as a measured kernel: all sequences get the mean length; prefill if T > B."""

    heads: int
    kv_heads: int
    channels: int
    window: int
    op: Op

    @classmethod
    def of(cls, graph: Graph, op: Op) -> _Attention:
        """From an op of the graph."""
        heads, channels = (fixed(dim) for dim in graph.values[op.inputs[0]].shape[1:])
        state = next(graph.values[name] for name in op.inputs if name and graph.values[name].kind is Kind.STATE)
        window = op.integer("window") if op.kind == "attention" else 0  # others see every position
        return cls(heads, fixed(state.shape[2]), channels, window, op)

    def of_sizes(self, sizes: Sizes) -> Kernel:
        """The kernel for a step of these sizes."""
        batch, window = max(1, sizes.B), self.window
        if batch >= sizes.T:
            context = max(1, round(sizes.context_tokens / batch))
            length = min(context, window) if window else context
            return Kernel("attention-decode", (self.heads, self.kv_heads, self.channels, batch, length))
        # The length of a prompt without cached context that has as many (query, key) pairs.
        pairs = pairs_of(self.op, sizes) / batch
        length = max(1, round(sqrt(2 * pairs + 0.25) - 0.5))
        return Kernel("attention-prefill", (self.heads, self.kv_heads, self.channels, batch, length))


def fixed(dim: Dim) -> int:
    """Narrow to a dimension that does not depend on the step. Raises ValueError."""
    if not isinstance(dim, int):
        raise ValueError(f"dimension {dim!r} is not fixed")
    return dim


def _kernels(spec: MachineSpec) -> Kernels:
    try:
        return kernels_of(spec.kernels)
    except KeyError as error:
        raise UsageError(
            f"machine {spec.name}: kernels", str(error.args[0]), "name one of those, or leave it out"
        ) from error


@cache
def _device(name: str) -> tuple[float, float, float]:
    spec = one_unit(name)
    tier = spec.tier(spec.run_tier)
    return spec.flops_per_s, tier.bytes_per_s, tier.share

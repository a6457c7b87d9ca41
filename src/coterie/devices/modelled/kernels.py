"""Which measured kernels a region is made of, and how fast it runs where they were measured.

    region   [linear linear linear]  [attention]  rest         linears that read one input are one gemm
    time     gemm                  + attention  + rest bytes at the achieved share of bandwidth
    share    what the peaks allow for the whole region / that time

Knows nothing about lanes, launches or links.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import sqrt

from coterie.core.errors import UsageError
from coterie.core.shapes import Dim, Sizes
from coterie.graph.branch.ops import MATRIX_READERS
from coterie.graph.cost import Cost, pairs_of
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.ops import ATTENTION
from coterie.graph.program import Program, Region
from coterie.spec.kernel import ELEMENT_WISE, Kernel
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
    one_unit,
)

ELEMENT_WISE_FLOPS = 8  # a byte, at most, of a kernel that only goes over its operands
_RANK = (MEASURED, INTERPOLATED, TRANSFERRED, ANALYTIC)


class RegionKernels:
    """The gemms and attentions of a region, and how fast it runs. `kernels` in place of all of the machine's GPU.

    Raises UsageError for a set that does not exist.
    """

    def __init__(self, spec: MachineSpec, program: Program, region: Region, kernels: Kernels | None = None) -> None:
        self._known = kernels or _kernels(spec)
        self._device = _device(self._known.device)
        self._gemms: dict[tuple[str, Dim, int], int] | None = _gemms(program.graph, region)
        self._attentions = [_Attention.of(program.graph, op) for op in region.ops if op.kind in ATTENTION]

    def of(self, sizes: Sizes) -> tuple[Kernel, ...] | None:
        """As kernels that may have been measured; None where one has weights that none has (not 16 bits)."""
        if self._gemms is None:
            return None
        gemms = [Kernel("gemm", (sizes.of(rows), n, k)) for (_, rows, k), n in self._gemms.items()]
        return (*gemms, *[attention.of_sizes(sizes) for attention in self._attentions])

    def speed(self, cost: Cost, sizes: Sizes) -> Speed | None:
        """The share of the machine's physical peaks that it reaches; None where nothing like it was measured."""
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
        ideal = max(cost.flops / flops_per_s, total_bytes / bytes_per_s)
        return Speed(min(1.0, ideal / total_s), _RANK[worst])


def _gemms(graph: Graph, region: Region) -> dict[tuple[str, Dim, int], int] | None:
    """By input, its rows and columns: the columns that come out. None for weights that are not of 16 bits.

    None for those of branches too: what tokens take of them is no gemm that was measured.
    """
    found: dict[tuple[str, Dim, int], int] = {}
    for op in region.ops:
        if op.kind in MATRIX_READERS:
            return None
        if op.kind == "linear":
            weight, y = graph.values[op.inputs[1]], graph.values[op.outputs[0]]
            if weight.dtype.is_packed or weight.dtype.size_bytes != 2:
                return None
            rows, columns = fixed(weight.shape[0]), fixed(weight.shape[1])
            key = (op.inputs[0], y.shape[0], columns)
            found[key] = found.get(key, 0) + rows
    return found


@dataclass(frozen=True, slots=True)
class _Attention:
    """All sequences are taken to be of the mean length; prefill where any has more than one token."""

    heads: int
    kv_heads: int
    channels: int
    window: int
    op: Op

    @classmethod
    def of(cls, graph: Graph, op: Op) -> _Attention:
        """The attention that an op is."""
        heads, channels = (fixed(dim) for dim in graph.values[op.inputs[0]].shape[1:])
        state = next(graph.values[name] for name in op.inputs if name and graph.values[name].kind is Kind.STATE)
        window = op.integer("window") if op.kind == "attention" else 0  # others see every position
        return cls(heads, fixed(state.shape[2]), channels, window, op)

    def of_sizes(self, sizes: Sizes) -> Kernel:
        """In a step."""
        batch, window = max(1, sizes.B), self.window
        if batch >= sizes.T:
            context = max(1, round(sizes.context_tokens / batch))
            length = min(context, window) if window else context
            return Kernel("attention-decode", (self.heads, self.kv_heads, self.channels, batch, length))
        # As long as a fresh prompt with as many pairs of a token and a position that it sees.
        pairs = pairs_of(self.op, sizes) / batch
        length = max(1, round(sqrt(2 * pairs + 0.25) - 0.5))
        return Kernel("attention-prefill", (self.heads, self.kv_heads, self.channels, batch, length))


def fixed(dim: Dim) -> int:
    """A dimension of a weight, of heads or of channels: no step changes it."""
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

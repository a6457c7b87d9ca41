"""Which measured kernels a region is made of, and how fast it runs where they were measured.

    region   [linear linear linear]  [attention]  rest         linears that read one input are one gemm
    time     gemm                  + attention  + rest bytes at the achieved share of bandwidth
    share    what the peaks allow for the whole region / that time

Knows nothing about lanes, launches or links.
"""

from __future__ import annotations

from functools import cache
from math import sqrt

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.graph.cost import Cost
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.program import Program, Region
from coterie.spec.kernel import ELEMENT_WISE, Kernel
from coterie.spec.load import load_machine
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
)

ATTENTION = ("attention", "alibi_attention")
ELEMENT_WISE_FLOPS = 8  # a byte, at most, of a kernel that only goes over its operands
_RANK = (MEASURED, INTERPOLATED, TRANSFERRED, ANALYTIC)


def region_kernels(program: Program, region: Region, sizes: Sizes) -> tuple[Kernel, ...] | None:
    """The gemms and attentions of a region; None where one has weights that no measured kernel has (not 16 bits)."""
    graph = program.graph
    gemms: dict[tuple[str, int, int], int] = {}
    found: list[Kernel] = []
    for op in region.ops:
        if op.kind == "linear":
            weight, y = graph.values[op.inputs[1]], graph.values[op.outputs[0]]
            if weight.dtype.is_packed or weight.dtype.size_bytes != 2:
                return None
            rows, columns = sizes.of(weight.shape[0]), sizes.of(weight.shape[1])
            key = (op.inputs[0], sizes.of(y.shape[0]), columns)
            gemms[key] = gemms.get(key, 0) + rows
        elif op.kind in ATTENTION:
            found.append(_attention(graph, op, sizes))
    return (*(Kernel("gemm", (m, n, k)) for (_, m, k), n in gemms.items()), *found)


def region_speed(
    spec: MachineSpec, program: Program, region: Region, cost: Cost, sizes: Sizes, *, kernels: Kernels | None = None
) -> Speed | None:
    """The share of the machine's physical peaks that a region reaches; None where nothing like it was measured.

    `kernels` in place of all that were measured on the machine's GPU. Raises UsageError for a set that does not exist.
    """
    parts = region_kernels(program, region, sizes)
    if parts is None or cost.total_bytes == 0 or (not parts and cost.flops > ELEMENT_WISE_FLOPS * cost.total_bytes):
        return None
    parts = parts or (Kernel(ELEMENT_WISE, (cost.total_bytes, sizes.T)),)
    known = kernels or _kernels(spec)
    speeds = [known.speed(kernel) for kernel in parts]
    total_s, covered_bytes, worst = 0.0, 0.0, 0
    for kernel, speed in zip(parts, speeds, strict=True):
        if speed is None:
            return None
        total_s += ideal_s(known.device, kernel) / speed.util
        covered_bytes += kernel.bytes
        worst = max(worst, _RANK.index(speed.provenance))
    flops_per_s, bytes_per_s, share = _device(known.device)
    total_s += max(0.0, cost.total_bytes - covered_bytes) / (bytes_per_s * share)
    ideal = max(cost.flops / flops_per_s, cost.total_bytes / bytes_per_s)
    return Speed(min(1.0, ideal / total_s), _RANK[worst])


def _attention(graph: Graph, op: Op, sizes: Sizes) -> Kernel:
    """All sequences are taken to be of the mean length; prefill where any has more than one token."""
    heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[0]].shape[1:])
    state = next(graph.values[name] for name in op.inputs if name and graph.values[name].kind is Kind.STATE)
    kv_heads = sizes.of(state.shape[2])
    batch = max(1, sizes.B)
    window = op.integer("window")
    if batch >= sizes.T:
        context = max(1, round(sizes.context_tokens / batch))
        return Kernel(
            "attention-decode", (heads, kv_heads, channels, batch, min(context, window) if window else context)
        )
    # As long as a fresh prompt with as many pairs of a token and a position that it sees.
    pairs = (min(sizes.pairs, sizes.T * window) if window else sizes.pairs) / batch
    return Kernel("attention-prefill", (heads, kv_heads, channels, batch, max(1, round(sqrt(2 * pairs + 0.25) - 0.5))))


def _kernels(spec: MachineSpec) -> Kernels:
    try:
        return kernels_of(spec.kernels)
    except KeyError as error:
        raise UsageError(
            f"machine {spec.name}: kernels", str(error.args[0]), "name one of those, or leave it out"
        ) from error


@cache
def _device(name: str) -> tuple[float, float, float]:
    spec = load_machine(name)
    tier = spec.tier(spec.run_tier)
    return spec.flops_per_s, tier.bytes_per_s, tier.share

"""Derives and validates the kernel efficiencies that are carried over to machines without measurements.

    fit        per GPU and family, by least squares of relative errors: a fixed time, plus the longer of flops and bytes
               at shares of the peaks
    carried    the median over architectures of the mean over an architecture's GPUs (spec/carried/gpu.toml).
               Architectures whose L2 cache can hold a benchmark's operands (96 and 128 MB: 33 MB were read at 1.5 times
               the memory's peak) are not used for memory or fixed time; their tables have only rows that are twice as
               large or compute-bound
    checked    each GPU's kernels are predicted from the other architectures only, and compared with the former rule for
               all machines without measurements: 0.7 of peak arithmetic, 0.8 of peak bandwidth

No number is specific to one machine. Knows nothing about programs or serving.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from statistics import mean, median

from coterie.core.errors import NotFoundError
from coterie.plan.validate.rows import VALIDATION, Row
from coterie.spec.carried import FAMILIES, PREFILL
from coterie.spec.kernel import GEMM, GEMM_FP8, Kernel
from coterie.spec.machine import KernelRates
from coterie.spec.measured import ANALYTIC, CARRIED, measured_devices, measured_rows, peaks
from coterie.spec.measured import Row as Measured

CARRIED_KERNEL, SPECIFIED_KERNEL = "GPU kernel, carried over", "GPU kernel, by specification"
SPECIFIED = KernelRates(0.0, 0.7, 0.8)
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "Ampere": ("a100",),
    "Hopper": ("h100", "h200"),
    "Ada": ("l40s",),
    "Blackwell": ("b200", "b300", "gb200", "gb300"),
    "Blackwell, workstation": ("rtx-pro-6000",),
}
_CACHED = ("Ada", "Blackwell, workstation")
_STEPS = 60  # iterations of a fit
Point = tuple[float, float, float]  # a kernel's time for flops at peak, for bytes at peak, and measured


def kernel_s(rates: KernelRates, flops_s: float, bytes_s: float) -> float:
    """Time of a kernel, given the times of its flops and bytes at the peaks."""
    return rates.fixed_s + max(flops_s / rates.flops_share, bytes_s / rates.bytes_share)


def fit_rates(points: Sequence[Point], flops: float | None = None, bytes_: float | None = None) -> KernelRates:
    """Fit one GPU and family by least squares of relative errors; a pattern search over the shares.

    `flops`, `bytes_`: fixed shares, for kernels that the resource does not limit.
    """

    def loss(rates: KernelRates) -> float:
        return sum((kernel_s(rates, flops_s, bytes_s) / seconds - 1) ** 2 for flops_s, bytes_s, seconds in points)

    def best_fixed(flops_share: float, bytes_share: float) -> KernelRates:
        rest = KernelRates(0.0, flops_share, bytes_share)
        above = [(1 - kernel_s(rest, f, b) / seconds) / seconds for f, b, seconds in points]
        fixed_s = max(0.0, sum(above) / sum(1 / seconds**2 for _, _, seconds in points))
        return KernelRates(fixed_s, flops_share, bytes_share)

    found, width = best_fixed(flops or 0.6, bytes_ or 0.6), 0.4
    by_flops, by_bytes = ((0,) if given else (-1, 0, 1) for given in (flops, bytes_))
    for _ in range(_STEPS):
        near = [
            best_fixed(
                min(1.0, max(0.05, found.flops_share + i * width)), min(1.0, max(0.05, found.bytes_share + j * width))
            )
            for i in by_flops
            for j in by_bytes
        ]
        best = min(near, key=loss)
        width *= 1.0 if loss(best) < loss(found) else 0.5
        found = min((found, best), key=loss)
    return found


@cache
def device_rates(device: str, family: str) -> KernelRates:
    """The rates of one GPU, fitted to all of its rows.

    Prefill attention is compute-bound and decode attention memory-bound: the other share is taken from GEMMs and
    prefill, respectively.
    """
    points = [point_of(device, row.kernel, row.seconds) for row in measured_rows(device) if _of(row, family)]
    if family in (GEMM, GEMM_FP8):
        return fit_rates(points)
    if family == PREFILL:
        return fit_rates(points, bytes_=device_rates(device, GEMM).bytes_share)
    return fit_rates(points, flops=device_rates(device, PREFILL).flops_share)


def carried_rates(family: str, without: str = "") -> KernelRates:
    """The rates from all architectures, or all except `without`."""
    each = {
        name: [device_rates(device, family) for device in devices]
        for name, devices in ARCHITECTURES.items()
        if name != without and any(_of(row, family) for row in measured_rows(devices[0]))
    }
    of_memory = {name: rates for name, rates in each.items() if name not in _CACHED}
    timed = each if family == PREFILL else of_memory
    return KernelRates(
        median(mean(one.fixed_s for one in rates) for rates in timed.values()),
        median(mean(one.flops_share for one in rates) for rates in each.values()),
        median(mean(one.bytes_share for one in rates) for rates in of_memory.values()),
    )


def architecture_of(device: str) -> str:
    """The architecture of a GPU. Raises NotFoundError for an unknown one."""
    for name, devices in ARCHITECTURES.items():
        if device in devices:
            return name
    known = ", ".join(device for devices in ARCHITECTURES.values() for device in devices)
    raise NotFoundError(device, "has no architecture, so no rates of others can be carried over", f"use one of {known}")


def point_of(device: str, kernel: Kernel, seconds: float) -> Point:
    """A measured kernel relative to the peaks of its GPU."""
    flops_per_s, bytes_per_s = peaks(device, kernel.family)
    return kernel.flops / flops_per_s, kernel.bytes / bytes_per_s, seconds


def carry_rows() -> Iterator[Row]:
    """Every measured kernel, predicted from the other architectures and by the former rule."""
    for device in measured_devices():
        for family in FAMILIES:
            rules = (
                (CARRIED_KERNEL, carried_rates(family, architecture_of(device)), CARRIED),
                (SPECIFIED_KERNEL, SPECIFIED, ANALYTIC),
            )
            for metric, rates, provenance in rules:
                for row in measured_rows(device):
                    if _of(row, family):
                        flops_s, bytes_s, seconds = point_of(device, row.kernel, row.seconds)
                        name = f"{device} {'x'.join(map(str, row.kernel.shape))}"
                        modelled_s = kernel_s(rates, flops_s, bytes_s)
                        yield Row(f"by other GPUs, {family}", metric, name, VALIDATION, seconds, modelled_s, provenance)


def _of(row: Measured, family: str) -> bool:
    return row.possible and row.kernel.family == family

"""Measured kernels (calibration/*.csv), and interpolation of kernels near them.

    possible      the peaks allow the measured time; other rows must be wrong: they are ignored, and reported
    effort        hypot(time of flops at peak, time of bytes at peak): near the roofline's ridge, both limit a kernel;
                  for decode attention with grouped heads, the time of its thread blocks (waves.py), whatever x is
    along y       (tokens or context) between two rows: GEMMs as hypot(fixed, rate * effort), decode attention as
                  fixed + rate * effort; for prefill and grouped heads, effort per second is linear in log y, with
                  the time kept within its neighbours'
    above y       GEMMs at the last row's rate; attention at the seconds per effort of the last two rows
    form          (n / k of a GEMM) effort per second is linear in its logarithm
    along x       (work per unit of y) time = fixed + rate * x between two rows, extrapolated up to REACH
    element-wise  a single curve, time = hypot(fixed, bytes / rate), by least squares of relative errors
    provenance    measured (this row), interpolated (between rows), transferred (outside them, within REACH)

These forms were chosen by leave-out tests on the calibration rows (plan/validate), never by the validation rows.
Knows nothing about graphs or programs.
"""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import groupby, pairwise
from math import hypot, log, sqrt

from coterie.spec.kernel import DECODE, ELEMENT_WISE, GEMM_FP8, GEMMS, Kernel
from coterie.spec.lines import across, bend, between
from coterie.spec.load import load_machine, machine_names
from coterie.spec.machine import MachineSpec
from coterie.spec.waves import Blocks

MAX_EFFORTS = 1 << 14  # cache entries; bounds memory, not use
REACH = 16.0  # extrapolate up to this factor beyond measured work
MEASURED, INTERPOLATED, TRANSFERRED, ANALYTIC = "measured", "interpolated", "transferred", "analytic"
CARRIED = "carried over"  # from other machines (carried.py)
_NAMES = {
    **dict.fromkeys(GEMMS, ("m", "n", "k")),
    "attention-prefill": ("heads", "kv_heads", "channels", "batch", "length"),
    DECODE: ("heads", "kv_heads", "channels", "batch", "length"),
    ELEMENT_WISE: ("bytes", "tokens"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `ideal_s`: the roofline time at the device's physical peaks."""

    device: str
    backend: str
    source: str
    kernel: Kernel
    seconds: float
    ideal_s: float

    @property
    def possible(self) -> bool:
        """False if it exceeds the device's peak flops or bandwidth."""
        return self.ideal_s <= self.seconds


@dataclass(frozen=True, slots=True)
class Speed:
    """A kernel's roofline time over its actual time, and the provenance of that."""

    util: float
    provenance: str


def measured_devices() -> tuple[str, ...]:
    """Devices with measured kernels."""
    return tuple(dict.fromkeys(row.device for row in _rows()))


def measured_rows(device: str) -> tuple[Row, ...]:
    """Every row of a device, including impossible ones."""
    return tuple(row for row in _rows() if row.device == device)


def ideal_s(device: str, kernel: Kernel) -> float:
    """Roofline time of a kernel at the device's physical peaks."""
    flops_per_s, bytes_per_s = peaks(device, kernel.family)
    return max(kernel.flops / flops_per_s, kernel.bytes / bytes_per_s)


def effort_s(device: str, kernel: Kernel) -> float:
    """A smooth roofline, where arithmetic and memory both limit a kernel near the ridge: up to 1.41 * `ideal_s`."""
    flops_per_s, bytes_per_s = peaks(device, kernel.family)
    return hypot(kernel.flops / flops_per_s, kernel.bytes / bytes_per_s)


@dataclass(frozen=True, slots=True)
class _Curve:
    """The rows of one x and form as (y, effort / seconds), by y.

    `rate`: seconds per effort beyond the last row; 0: as at the last row.
    """

    x: float
    form: float
    points: tuple[tuple[float, float], ...]
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class _Variant:
    """The curves of one variant of a family, by x and then by form, and the range of y of their rows."""

    xs: tuple[float, ...]
    curves: tuple[tuple[_Curve, ...], ...]
    low: float
    high: float

    @classmethod
    def of(cls, curves: Sequence[_Curve]) -> _Variant:
        """Group curves that are sorted by x and form."""
        by_x = [(x, tuple(same)) for x, same in groupby(curves, key=lambda curve: curve.x)]
        low, high = min(curve.points[0][0] for curve in curves), max(curve.points[-1][0] for curve in curves)
        return cls(tuple(x for x, _ in by_x), tuple(same for _, same in by_x), low, high)


class Kernels:
    """Kernel speeds of one device, from measured rows; impossible rows are ignored.

    `blocks`: models fitted to decode attention with grouped heads, by query heads per kv head.
    """

    def __init__(self, device: str, rows: Iterable[Row]) -> None:
        self.device = device
        self._exact: dict[Kernel, float] = {}
        moves: list[tuple[float, float]] = []
        found: dict[tuple[str, int], dict[tuple[float, float], list[Row]]] = defaultdict(lambda: defaultdict(list))
        kept = tuple(rows)
        for row in kept:
            if row.possible and row.kernel.family == ELEMENT_WISE:
                moves.append((row.kernel.bytes, row.seconds))
            elif row.possible:
                self._exact[row.kernel] = row.ideal_s / row.seconds
                found[row.kernel.family, row.kernel.variant][row.kernel.x, row.kernel.form].append(row)
        self._variants = tuple(found)
        self._nearest: dict[tuple[str, int], int | None] = {}
        self._efforts_s: dict[tuple[tuple[str | int, ...], float], float] = {}
        self.blocks = self._blocks_of(kept)
        self._known = {key: _Variant.of(self._curves_of(by_work)) for key, by_work in found.items()}
        self._moves = bend(moves) if len({size for size, _ in moves}) > 1 else None
        self._moved = (min(size for size, _ in moves), max(size for size, _ in moves)) if moves else (0.0, 0.0)

    def speed(self, kernel: Kernel) -> Speed | None:
        """The speed of a kernel; None if it is out of reach of all measured ones."""
        if kernel.family == ELEMENT_WISE:
            return self._move(kernel)
        if kernel in self._exact:
            return Speed(self._exact[kernel], MEASURED)
        near = self._near(kernel.family, kernel.variant)
        if near is None:
            return None
        known, x, y = self._known[kernel.family, near], kernel.x, kernel.y
        first, last = known.xs[0], known.xs[-1]
        if not first / REACH <= x <= last * REACH or not known.low / REACH <= y <= known.high * REACH:
            return None
        inside = near == kernel.variant and first <= x <= last and known.low <= y <= known.high
        # Only the two neighbours in x matter.
        at = min(max(1, bisect_left(known.xs, x)), len(known.xs) - 1)
        beside = zip(known.xs[max(0, at - 1) : at + 1], known.curves[max(0, at - 1) : at + 1], strict=True)
        shares = [(at_x, self._of_form(same, kernel)) for at_x, same in beside]
        share = between(shares, x) if self._block_times(kernel) else across(shares, x)
        seconds = self._effort_s(kernel) / share
        util = min(1.0, ideal_s(self.device, kernel) / seconds)
        return Speed(util, INTERPOLATED if inside else TRANSFERRED)

    def _near(self, family: str, variant: int) -> int | None:
        """The nearest measured variant of a family; None if none was measured."""
        key = family, variant
        if key not in self._nearest:
            variants = [known for name, known in self._variants if name == family]
            distance = {known: abs(log(max(known, 1) / max(variant, 1))) for known in variants}
            self._nearest[key] = min(variants, key=distance.__getitem__, default=None)
        return self._nearest[key]

    def _move(self, kernel: Kernel) -> Speed | None:
        if self._moves is None:
            return None
        fixed_s, rate = self._moves
        inside = self._moved[0] <= kernel.bytes <= self._moved[1]
        util = ideal_s(self.device, kernel) / hypot(fixed_s, rate * kernel.bytes)
        return Speed(min(1.0, util), INTERPOLATED if inside else TRANSFERRED)

    def _effort_s(self, kernel: Kernel) -> float:
        effort, blocks = effort_s(self.device, kernel), self._block_times(kernel)
        return blocks.seconds(kernel, effort) if blocks else effort

    def _block_times(self, kernel: Kernel) -> Blocks | None:
        """The thread-block model for a decode attention; None for other kernels, or if none could be fitted."""
        if kernel.family != DECODE:
            return None
        near = self._near(DECODE, kernel.variant)
        return None if near is None else self.blocks.get(near)

    def _blocks_of(self, rows: Iterable[Row]) -> dict[int, Blocks]:
        """Fit a thread-block model per variant with grouped heads, if there are enough rows."""
        multiprocessors, points = one_unit(self.device).multiprocessors, defaultdict(list)
        for row in rows:
            if row.possible and row.kernel.grouped and multiprocessors:
                points[row.kernel.variant].append((row.kernel, effort_s(self.device, row.kernel), row.seconds))
        fits = {variant: Blocks.fit(multiprocessors, found) for variant, found in points.items()}
        return {variant: blocks for variant, blocks in fits.items() if blocks}

    def _effort_at(self, kernel: Kernel, y: float) -> float:
        """The effort of the same kernel at the y of a row; cached."""
        key = kernel.work, y
        if key not in self._efforts_s:
            if len(self._efforts_s) >= MAX_EFFORTS:
                self._efforts_s.clear()
            self._efforts_s[key] = self._effort_s(kernel.at(y))
        return self._efforts_s[key]

    def _curves_of(self, by_work: Mapping[tuple[float, float], Sequence[Row]]) -> list[_Curve]:
        """The curves of one variant. A curve with a single row borrows the rate of the nearest one with more."""
        curves, rates = [], {}
        for (x, form), rows in sorted(by_work.items()):
            by_y: dict[float, list[Row]] = defaultdict(list)
            for row in rows:
                by_y[row.kernel.y].append(row)
            points = []
            for y, same in sorted(by_y.items()):
                shares = [self._effort_s(row.kernel) / row.seconds for row in same]
                points.append((y, sum(shares) / len(shares)))
            curves.append(_Curve(x, form, tuple(points)))
            if len(points) > 1 and not rows[0].kernel.is_gemm and not self._block_times(rows[0].kernel):
                rates[x] = self._rate(rows[0].kernel, points)
        if not rates:
            return curves
        return [replace(curve, rate=rates[min(rates, key=lambda x: abs(log(x / curve.x)))]) for curve in curves]

    def _of_form(self, curves: Sequence[_Curve], kernel: Kernel) -> float:
        """Effort / seconds at one x: linear in the form between two curves; beyond them, that of the nearest."""
        for low, high in pairwise(curves):
            if low.form <= kernel.form <= high.form:
                part = (kernel.form - low.form) / (high.form - low.form)
                return (1 - part) * self._along(low, kernel) + part * self._along(high, kernel)
        return self._along(min(curves, key=lambda curve: abs(curve.form - kernel.form)), kernel)

    def _rate(self, kernel: Kernel, points: Sequence[tuple[float, float]]) -> float:
        """Seconds per effort between the last two rows; at least 1, what the peaks allow."""
        (x0, u0), (x1, u1) = ((self._effort_s(kernel.at(y)), share) for y, share in points[-2:])
        return max(1.0, (x1 / u1 - x0 / u0) / (x1 - x0))

    def _along(self, curve: _Curve, kernel: Kernel) -> float:
        """Effort / seconds at the kernel's y."""
        y, points, effort = kernel.y, curve.points, self._effort_s(kernel)
        last_y, last = points[-1]
        if y >= last_y:
            at_last = self._effort_at(kernel, last_y)
            return effort / (at_last / last + curve.rate * (effort - at_last)) if curve.rate and y > last_y else last
        if len(points) == 1:
            return last
        if y < points[0][0]:  # a fixed part of the time remains
            if self._block_times(kernel):
                return points[0][1]
            return across([(self._effort_at(kernel, at), share) for at, share in points[:2]], effort)
        i = max(1, bisect_left(points, (y,)))
        (y0, u0), (y1, u1) = points[i - 1], points[i]
        e0, e1 = self._effort_at(kernel, y0), self._effort_at(kernel, y1)
        if kernel.is_gemm:  # hypot(fixed, rate * effort) through both
            part = (effort**2 - e0**2) / (e1**2 - e0**2)
            return effort / sqrt((1 - part) * (e0 / u0) ** 2 + part * (e1 / u1) ** 2)
        if kernel.family == DECODE and not self._block_times(kernel):  # fixed + rate * effort
            part = (effort - e0) / (e1 - e0)
            return effort / ((1 - part) * e0 / u0 + part * e1 / u1)
        seconds = effort / (u0 + (u1 - u0) * log(y / y0) / log(y1 / y0))
        low, high = sorted((e0 / u0, e1 / u1))
        return effort / min(max(seconds, low), high)


@cache
def kernels_of(device: str) -> Kernels:
    """The kernels of a device, from all its rows; cached. Raises KeyError for a device without any."""
    if device not in measured_devices():
        raise KeyError(f"no kernels were measured on {device}; there are those of {', '.join(measured_devices())}")
    return Kernels(device, measured_rows(device))


@cache
def peaks(device: str, family: str) -> tuple[float, float]:
    """Peak flops and bytes per second of one GPU for a kernel family."""
    spec = one_unit(device)
    times = spec.fp8_times if family == GEMM_FP8 else 1.0
    return spec.flops_per_s * times, spec.tier(spec.run_tier).bytes_per_s


def one_unit(device: str) -> MachineSpec:
    """The machine of a measured device, reduced to one GPU."""
    return load_machine(f"{device}:units=1")


@cache
def _rows() -> tuple[Row, ...]:
    found = []
    for family, names in _NAMES.items():
        for raw in read_table("coterie.spec", f"calibration/{family}.csv"):
            kernel = Kernel(family, tuple(int(raw[name]) for name in names), int(raw.get("planes", 2)))
            if raw["device"] not in machine_names():
                raise KeyError(f"{family}.csv names {raw['device']}, of which there is no machine file")
            backend = f"{raw['backend']} {raw['version']}"
            ideal = ideal_s(raw["device"], kernel)
            found.append(Row(raw["device"], backend, raw["source"], kernel, float(raw["us"]) * 1e-6, ideal))
    return tuple(found)


def read_table(package: str, path: str) -> tuple[dict[str, str], ...]:
    """The rows of a CSV file that ships with a package, as dicts by its header."""
    text = files(package).joinpath(*path.split("/")).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))

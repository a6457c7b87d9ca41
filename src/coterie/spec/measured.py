"""Measured kernels (calibration/*.csv) and how fast others run that are near them.

    utilisation   u = what the peaks allow / what was measured; above 1 the row is wrong: dropped, and listed
    along y       tokens or context: u between two neighbours, linear in log y
    along x       work at one y: time = fixed + rate * x between two neighbours; that also holds outside, for a while
    element-wise  one line through all: time = fixed + bytes / rate, least relative squares
    provenance    measured (this row), interpolated (between rows), transferred (outside them, within REACH)

Linear in log y and on u: held-out rows were 4 to 11 % off this way, 7 to 33 % with times linear in y.
Knows nothing about graphs or programs.
"""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import log

from coterie.spec.load import load_machine, machine_names

REACH = 16.0  # how many times outside measured work a kernel's speed is still transferred
MEASURED, INTERPOLATED, TRANSFERRED, ANALYTIC = "measured", "interpolated", "transferred", "analytic"
HEADS = 32  # of measured attention; x counts batches of so many heads
ELEMENT_WISE = "element-wise"
_NAMES = {
    "gemm": ("m", "n", "k"),
    "attention-prefill": ("heads", "kv_heads", "channels", "batch", "length"),
    "attention-decode": ("heads", "kv_heads", "channels", "batch", "length"),
    ELEMENT_WISE: ("bytes", "tokens"),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """What was measured, or is asked for. `shape` is m, n, k of a gemm; heads, kv heads, channels, batch, length of
    attention (tokens in prefill, context in decode, both of one sequence); bytes and tokens of an element-wise one.
    """

    family: str
    shape: tuple[int, ...]

    @property
    def variant(self) -> int:
        """Rows of one variant are near each other: query heads for each kv head; 0 for gemm."""
        return max(1, self.shape[0] // self.shape[1]) if len(self.shape) == 5 else 0

    @property
    def x(self) -> float:
        """The work at one y: weights of a gemm, batch times heads of attention."""
        if self.family == "gemm":
            return float(self.shape[1] * self.shape[2])
        return self.shape[3] * self.shape[0] * self.shape[2] / (HEADS * 128)

    @property
    def y(self) -> float:
        """Tokens or context."""
        return float(self.shape[{"gemm": 0, ELEMENT_WISE: 1}.get(self.family, 4)])

    def at(self, y: float) -> Kernel:
        """The same work with as many tokens or as long a context."""
        where = 0 if self.family == "gemm" else 4
        return Kernel(self.family, (*self.shape[:where], round(y), *self.shape[where + 1 :]))

    @property
    def flops(self) -> float:
        """Multiplies and adds; causal pairs only."""
        if self.family == ELEMENT_WISE:
            return 0.0
        if self.family == "gemm":
            m, n, k = self.shape
            return 2.0 * m * n * k
        heads, _, channels, batch, length = self.shape
        pairs = length * (length + 1) / 2 if self.family == "attention-prefill" else length
        return 4.0 * channels * heads * batch * pairs

    @property
    def bytes(self) -> float:
        """Operands and result once, two bytes each."""
        if self.family == ELEMENT_WISE:
            return float(self.shape[0])
        if self.family == "gemm":
            m, n, k = self.shape
            return 2.0 * (m * k + n * k + m * n)
        heads, kv_heads, channels, batch, length = self.shape
        rows = length if self.family == "attention-prefill" else 1
        return 2.0 * channels * batch * (2 * kv_heads * length + 2 * heads * rows)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `ideal_s` is what the device's physical peaks allow."""

    device: str
    backend: str
    source: str
    kernel: Kernel
    seconds: float
    ideal_s: float

    @property
    def possible(self) -> bool:
        """False when it beats the device's peaks: bytes / time or flops / time above them."""
        return self.ideal_s <= self.seconds


@dataclass(frozen=True, slots=True)
class Speed:
    """The share of what the peaks allow that a kernel reaches, and how that is known."""

    util: float
    provenance: str


def measured_devices() -> tuple[str, ...]:
    """Devices with measured kernels."""
    return tuple(dict.fromkeys(row.device for row in _rows()))


def measured_rows(device: str) -> tuple[Row, ...]:
    """Every row of a device, possible or not."""
    return tuple(row for row in _rows() if row.device == device)


def ideal_s(device: str, kernel: Kernel) -> float:
    """Seconds of a kernel at the physical peaks of the device that was measured."""
    flops_per_s, bytes_per_s = _peaks(device)
    return max(kernel.flops / flops_per_s, kernel.bytes / bytes_per_s)


class Kernels:
    """The speeds of one device's kernels, from rows; those that are not possible are left out."""

    def __init__(self, device: str, rows: Iterable[Row]) -> None:
        self.device = device
        self._exact: dict[Kernel, float] = {}
        moves: list[tuple[float, float]] = []
        found: dict[tuple[str, int], dict[float, dict[float, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for row in rows:
            if row.possible and row.kernel.family == ELEMENT_WISE:
                moves.append((row.kernel.bytes, row.seconds))
            elif row.possible:
                util = row.ideal_s / row.seconds
                self._exact[row.kernel] = util
                found[row.kernel.family, row.kernel.variant][row.kernel.x][row.kernel.y].append(util)
        self._curves = {
            key: [(x, sorted((y, sum(us) / len(us)) for y, us in curve.items())) for x, curve in sorted(curves.items())]
            for key, curves in found.items()
        }
        self._moves = _line(moves) if len({size for size, _ in moves}) > 1 else None
        self._moved = (min(size for size, _ in moves), max(size for size, _ in moves)) if moves else (0.0, 0.0)

    def speed(self, kernel: Kernel) -> Speed | None:
        """How fast a kernel runs; None where no measured one is near."""
        if kernel.family == ELEMENT_WISE:
            return self._move(kernel)
        if kernel in self._exact:
            return Speed(self._exact[kernel], MEASURED)
        variants = [variant for family, variant in self._curves if family == kernel.family]
        if not variants:
            return None
        near = min(variants, key=lambda variant: abs(log(max(variant, 1) / max(kernel.variant, 1))))
        curves = self._curves[kernel.family, near]
        x, y = kernel.x, kernel.y
        inside = near == kernel.variant and curves[0][0] <= x <= curves[-1][0]
        if not curves[0][0] / REACH <= x <= curves[-1][0] * REACH:
            return None
        ends = [(curve[0][0], curve[-1][0]) for _, curve in curves]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        if not low / REACH <= y <= high * REACH:
            return None
        inside = inside and low <= y <= high
        points = [(at, self._along(curve, kernel)) for at, curve in curves]
        return Speed(_across(points, x), INTERPOLATED if inside else TRANSFERRED)

    def _move(self, kernel: Kernel) -> Speed | None:
        if self._moves is None:
            return None
        fixed_s, rate = self._moves
        inside = self._moved[0] <= kernel.bytes <= self._moved[1]
        util = ideal_s(self.device, kernel) / (fixed_s + rate * kernel.bytes)
        return Speed(min(1.0, util), INTERPOLATED if inside else TRANSFERRED)

    def _along(self, curve: Sequence[tuple[float, float]], kernel: Kernel) -> float:
        """Utilisation at the kernel's y: linear in log y; above the last as there; below, a fixed time remains."""
        y = kernel.y
        if len(curve) == 1 or y >= curve[-1][0]:
            return curve[-1][1]
        if y < curve[0][0]:
            points = [(ideal_s(self.device, kernel.at(at)), u) for at, u in curve[:2]]
            return _across(points, ideal_s(self.device, kernel))
        i = max(1, bisect_left([at for at, _ in curve], y))
        (y0, u0), (y1, u1) = curve[i - 1], curve[i]
        return u0 + (u1 - u0) * log(y / y0) / log(y1 / y0)


@cache
def kernels_of(device: str) -> Kernels:
    """The kernels of a device, from all its rows. Raises KeyError for a device without any."""
    if device not in measured_devices():
        raise KeyError(f"no kernels were measured on {device}; there are those of {', '.join(measured_devices())}")
    return Kernels(device, measured_rows(device))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """a and b of y = a + b x with the least sum of squared relative errors; neither below 0."""
    w = [1 / y**2 for _, y in points]
    sx, sy = (sum(wi * point[i] for wi, point in zip(w, points, strict=True)) for i in (0, 1))
    sxx = sum(wi * x * x for wi, (x, _) in zip(w, points, strict=True))
    sxy = sum(wi * x * y for wi, (x, y) in zip(w, points, strict=True))
    b = max(0.0, (sum(w) * sxy - sx * sy) / (sum(w) * sxx - sx * sx))
    return max(0.0, (sy - b * sx) / sum(w)), b


def _across(points: Sequence[tuple[float, float]], x: float) -> float:
    """Utilisation at x: x / u is a time, affine in x between the nearest two points, and outside them."""
    if len(points) == 1:
        return points[0][1]
    i = min(max(1, bisect_left([at for at, _ in points], x)), len(points) - 1)
    (x0, u0), (x1, u1) = points[i - 1], points[i]
    t0, t1 = x0 / u0, x1 / u1
    rate = max(0.0, (t1 - t0) / (x1 - x0))
    if x < x0:
        rate = min(rate, t0 / x0)  # less work is not done at a higher share of the peaks
    time = t0 + rate * (x - x0) if x <= x1 else t1 + rate * (x - x1)
    return min(1.0, x / time) if time > 0 else 1.0


@cache
def _peaks(device: str) -> tuple[float, float]:
    spec = load_machine(device)
    return spec.flops_per_s, spec.tier(spec.run_tier).bytes_per_s


@cache
def _rows() -> tuple[Row, ...]:
    found = []
    for family, names in _NAMES.items():
        for raw in read_table("coterie.spec", f"calibration/{family}.csv"):
            kernel = Kernel(family, tuple(int(raw[name]) for name in names))
            if raw["device"] not in machine_names():
                raise KeyError(f"{family}.csv names {raw['device']}, of which there is no machine file")
            backend = f"{raw['backend']} {raw['version']}"
            ideal = ideal_s(raw["device"], kernel)
            found.append(Row(raw["device"], backend, raw["source"], kernel, float(raw["us"]) * 1e-6, ideal))
    return tuple(found)


def read_table(package: str, path: str) -> tuple[dict[str, str], ...]:
    """The rows of a CSV file that ships with a package, by the names in its first line."""
    text = files(package).joinpath(*path.split("/")).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))

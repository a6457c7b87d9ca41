"""Curve fitting and interpolation. Knows nothing about kernels."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import log, sqrt


def bend(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit y = hypot(a, b x) as the line y^2 = a^2 + b^2 x^2; returns (a, b)."""
    a, b = line([(x * x, y * y) for x, y in points])
    return sqrt(a), sqrt(b)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit y = a + b x by least squares of relative errors, with a and b non-negative; returns (a, b)."""
    w = [1 / y**2 for _, y in points]
    sx, sy = (sum(wi * point[i] for wi, point in zip(w, points, strict=True)) for i in (0, 1))
    sxx = sum(wi * x * x for wi, (x, _) in zip(w, points, strict=True))
    sxy = sum(wi * x * y for wi, (x, y) in zip(w, points, strict=True))
    b = max(0.0, (sum(w) * sxy - sx * sy) / (sum(w) * sxx - sx * sx))
    return max(0.0, (sy - b * sx) / sum(w)), b


def across(points: Sequence[tuple[float, float]], x: float) -> float:
    """Interpolate a rate u at x: the time x / u is linear in x between the nearest two points, and beyond them."""
    if len(points) == 1:
        return points[0][1]
    i = min(max(1, bisect_left([at for at, _ in points], x)), len(points) - 1)
    (x0, u0), (x1, u1) = points[i - 1], points[i]
    t0, t1 = x0 / u0, x1 / u1
    rate = max(0.0, (t1 - t0) / (x1 - x0))
    if x < x0:
        rate = min(rate, t0 / x0)  # less work does not reach a higher share of the peaks
    time = t0 + rate * (x - x0) if x <= x1 else t1 + rate * (x - x1)
    return x / time if time > 0 else 1.0


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Interpolate u at x linearly in log x between the nearest two points; constant outside them."""
    if x <= points[0][0]:
        return points[0][1]
    if x >= points[-1][0]:
        return points[-1][1]
    i = bisect_left([at for at, _ in points], x)
    (x0, u0), (x1, u1) = points[i - 1], points[i]
    return u0 + (u1 - u0) * log(x / x0) / log(x1 / x0)

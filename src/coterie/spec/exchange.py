"""Measured all-reduces among GPUs (calibration/all-reduce.csv), and interpolation between their sizes.

    h100/nccl      one library on one GPU generation
    h100/custom    the faster, at each size, of the serving engine's own all-reduce and NCCL

A message circulates among n ranks in k chunks: T = (n - 2 + k)(l + m / k), with l the latency per hop and m the time to
move all bytes. The best k gives T = (n - 2) l + m + 2 sqrt((n - 2) l m). The total latency is that of 2 (n - 1) hops,
of which (n - 2) l is the share (n - 2) / (2 n - 2). Each row is solved for m, and m is interpolated linearly in bytes;
for two ranks that equals interpolating T. In leave-one-out tests the error was 18 %, and 37 % with T linear.

Knows nothing about graphs or machines.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import sqrt

from coterie.spec.measured import INTERPOLATED, MEASURED, TRANSFERRED, read_table

_FALLBACK = {"custom": ("custom", "nccl"), "nccl": ("nccl",)}


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """One all-reduce of `size_bytes` among `ranks`."""

    device: str
    library: str
    ranks: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ExchangeTime:
    """Seconds, and their provenance."""

    seconds: float
    provenance: str


def exchange_rows() -> tuple[ExchangeRow, ...]:
    """Every row of the table."""
    rows = read_table("coterie.spec", "calibration/all-reduce.csv")
    return tuple(
        ExchangeRow(r["device"], r["backend"], int(r["ranks"]), int(r["bytes"]), float(r["us"]) * 1e-6) for r in rows
    )


class Exchanges:
    """All-reduce times by device, library and ranks."""

    def __init__(self, rows: Iterable[ExchangeRow]) -> None:
        self._tables: dict[tuple[str, str, int], list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            self._tables[row.device, row.library, row.ranks].append((row.size_bytes, row.seconds))
        for table in self._tables.values():
            table.sort()

    @property
    def libraries(self) -> tuple[str, ...]:
        """The valid values of a machine's `peers.library`."""
        return tuple(dict.fromkeys(f"{device}/{library}" for device, library, _ in self._tables))

    def all_reduce(self, library: str, ranks: int, size_bytes: int) -> ExchangeTime | None:
        """Time of an all-reduce; None for a library that was not measured.

        Without rows for this number of ranks, the nearest number is used: latency hardly changes, and NCCL is there for
        large messages. If the library itself has such rows, NCCL is considered only if it has them too.
        """
        device, _, name = library.partition("/")
        own = (device, name, ranks) in self._tables
        asked = [one for one in _FALLBACK.get(name, ()) if not own or (device, one, ranks) in self._tables]
        found = [self._one(device, one, ranks, size_bytes) for one in asked]
        known = [time for time in found if time is not None]
        return min(known, key=lambda time: time.seconds, default=None)

    def _one(self, device: str, name: str, ranks: int, size_bytes: int) -> ExchangeTime | None:
        counts = [count for where, library, count in self._tables if (where, library) == (device, name)]
        if not counts:
            return None
        count = min(counts, key=lambda c: abs(c - ranks))
        table = self._tables[device, name, count]
        sizes = [size for size, _ in table]
        i = bisect_left(sizes, size_bytes)
        if i < len(sizes) and sizes[i] == size_bytes:
            return ExchangeTime(table[i][1], MEASURED if count == ranks else TRANSFERRED)
        inside = 0 < i < len(sizes) and count == ranks
        if size_bytes < sizes[0]:
            return ExchangeTime(table[0][1], TRANSFERRED)
        j = min(max(1, i), len(sizes) - 1)
        latency_s, hops_s = table[0][1], table[0][1] * (count - 2) / (2 * count - 2)
        (s0, t0), (s1, t1) = table[j - 1], table[j]
        m0, m1 = _moving_s(t0 - latency_s, hops_s), _moving_s(t1 - latency_s, hops_s)
        moving_s = m0 + max(0.0, m1 - m0) * (size_bytes - s0) / (s1 - s0)
        seconds = latency_s + moving_s + 2 * sqrt(hops_s * moving_s)
        return ExchangeTime(seconds, INTERPOLATED if inside else TRANSFERRED)


def _moving_s(above_s: float, hops_s: float) -> float:
    """Solve m + 2 sqrt(hops m) = above for m, where `above` is the time beyond the latency."""
    return (sqrt(hops_s + max(0.0, above_s)) - sqrt(hops_s)) ** 2


@cache
def all_exchanges() -> Exchanges:
    """The table of all rows; cached."""
    return Exchanges(exchange_rows())

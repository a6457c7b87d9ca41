"""Parsing and formatting of counts, bytes, rates and times. SI units for rates, binary ones for capacities.

Knows nothing about what is measured.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BINARY = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Turn "64MiB", "1.5 GB" or "4096" into bytes. Raises ValueError on anything else."""
    match = _NUMBER.fullmatch(text)
    scale = {**_BINARY, **_DECIMAL}.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise ValueError(f"{text!r} is not a size; write a number and B, KiB, MiB, GiB, TiB, KB, MB, GB or TB")
    return int(Fraction(match[1]) * scale)  # exact: 2.01 KB is 2010 bytes, but 2009 in floating point


def parse_seconds(text: str) -> float:
    """Turn "50ms", "30s", "10m" or "2h" into seconds. Raises ValueError on anything else, and for zero."""
    match = _NUMBER.fullmatch(text)
    scale = TIMES.get(match[2]) if match else None
    if match is not None and not match[2] and float(match[1]):
        number = match[1]
        raise ValueError(f"{text!r} has no unit; write {number}s for seconds, or a number and {', '.join(TIMES)}")
    if match is None or scale is None or not (seconds := float(match[1]) * scale):
        raise ValueError(f"{text!r} is not a time above 0; write a number and {', '.join(TIMES)}")
    return seconds


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun, for example `1 expert` or `16 experts` (regular plurals only)."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_bytes(size_bytes: float) -> str:
    """Format a capacity in binary units, for example `1.50 MiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if round(abs(size), 2) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def format_shrunk(before_bytes: int, after_bytes: int, num_weights: int) -> str:
    """Format how a conversion of weights changed their size, in total and in bits per weight."""
    both = before_bytes, after_bytes
    sizes, bits = map(format_bytes, both), (f"{8 * size / num_weights:.2f}" for size in both)
    return f"{' -> '.join(sizes)}, {' -> '.join(bits)} bits a weight"


def format_rate(bytes_per_s: float) -> str:
    """Format a bandwidth in decimal units, for example `25.1 GB/s`."""
    rate = float(bytes_per_s)
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if round(abs(rate), 1) < 1000:
            return f"{rate:.1f} {unit}"
        rate /= 1000
    return f"{rate:.2f} TB/s"


def format_seconds(seconds: float) -> str:
    """Format a duration with three significant digits, for example `1.24 ms`; from 1000 s on, whole seconds."""
    value = float(seconds) * 1e9
    for unit in ("ns", "us", "ms"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} s" if abs(value) < 999.5 else f"{value:.0f} s"

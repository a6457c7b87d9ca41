"""Numbers and errors of exhibits as people read them.

Knows nothing about where they are printed.
"""

from __future__ import annotations


def number(value: float | None) -> str:
    """Four significant digits, whole numbers whole; a dash where there is none."""
    if value is None:
        return "-"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def error_text(error: float | None, signed: bool = True) -> str:
    """A relative error in percent; from ten times on, as a factor."""
    if error is None:
        return "-"
    if error >= 9:
        return f"x{error + 1:.0f}"
    rounded = round(error, 3) or 0.0
    return f"{rounded:{'+' if signed else ''}.1%}"

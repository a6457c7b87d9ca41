"""Service-level objectives: limits on latency, and the share of requests that must meet them.

    ttft=1s,tpot=50ms,e2e=10s,share=0.99

Knows nothing about how requests are served.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.core.errors import UsageError
from coterie.core.units import TIMES, format_seconds, parse_seconds
from coterie.plan.mix import F64

SHARE = 0.95  # default share of requests


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds on time to first token, time per later token and end-to-end latency, for `share` of requests.

    `busy`: upper bound on the utilisation of steps and links in a plan; not part of the objective itself.
    """

    ttft_s: float = math.inf
    tpot_s: float = math.inf
    e2e_s: float = math.inf
    share: float = SHARE
    busy: float = 1.0

    def met_by(self, ttft_s: F64, tpot_s: F64, e2e_s: F64) -> npt.NDArray[np.bool_]:
        """Which requests met all limits."""
        return (ttft_s <= self.ttft_s) & (tpot_s <= self.tpot_s) & (e2e_s <= self.e2e_s)

    def __str__(self) -> str:
        limits = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        kept = ", ".join(f"{name} {format_seconds(limit)}" for name, limit in limits.items() if limit < math.inf)
        return f"{kept or 'no limit'} for {self.share:.4g} of the requests"


def parse_slo(text: str) -> Slo:
    """Parse the `--slo` option. Raises UsageError naming the part that is wrong."""
    values: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ("ttft", "tpot", "e2e", "share") or name in values:
            known = "ttft, tpot, e2e and share, each once"
            raise UsageError("--slo", f"{part!r} is not known here", f"give {known}: ttft=1s,tpot=50ms")
        values[name] = _share(part, value) if name == "share" else _seconds(part, value)
    if not set(values) - {"share"}:
        raise UsageError("--slo", f"{text!r} promises nothing", "write ttft=1s,tpot=50ms, say")
    share = values.pop("share", SHARE)
    return Slo(**{f"{name}_s": value for name, value in values.items()}, share=share)


def _seconds(part: str, value: str) -> float:
    try:
        return parse_seconds(value)
    except ValueError:
        raise UsageError("--slo", f"{part!r} is not a time above 0", f"write a number and {', '.join(TIMES)}") from None


def _share(part: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError("--slo", f"{part!r} is not a share", "write a number above 0 and up to 1")
    return share

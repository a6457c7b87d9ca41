"""The load that a plan must serve, from options or a file of requests: shares, rate and mean lengths.

    options    the shares of a mix, a rate, length distributions
    a file     its shares and mean lengths; the rate of its busiest minute, unless one is given

Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from coterie.core.errors import UsageError
from coterie.plan.mix import F64
from coterie.plan.workload import Load, Workload, make_workload

BUSY_S = 60.0  # a file's peak rate is taken over windows of this length


@dataclass(frozen=True, slots=True, eq=False)
class OfferedLoad:
    """Each expert's share of the requests, requests per second, mean tokens of prompts and answers.

    `description`: the load's origin, in words. `requests`: the workload that a check simulates, at `rate`.
    """

    shares: F64
    rate: float
    prompt_tokens: float
    new_tokens: float
    description: str
    requests: Workload

    @property
    def assumes(self) -> str:
        """How priorities are treated, in words; empty if all requests have the same."""
        ranks = self.requests.ranks
        if ranks.min() == ranks.max():
            return ""
        best = f"those of priority {ranks.min()}, who go first"
        return f"the formulas apply the SLO to all requests, as if they had one priority, and --check to {best}"

    def of(self, numbers: Sequence[int], names: Sequence[str], limit: int) -> Workload:
        """The first `limit` requests to these experts, which are renumbered from 0 and called `names`."""
        positions = np.full(len(self.shares), -1)
        positions[list(numbers)] = np.arange(len(numbers))
        mine = np.flatnonzero(positions[self.requests.expert_index] >= 0)[:limit]
        part = self.requests.only(mine)
        return replace(part, names=tuple(names), expert_index=positions[part.expert_index])


def from_options(load: Load, names: Sequence[str]) -> OfferedLoad:
    """The load given by options; `load` must have a rate."""
    shares = load.mix.shares(len(names), load.seed)
    description = f"{load.rate:g} requests/s, mix {load.mix.text}"
    return OfferedLoad(
        shares, load.rate or 0.0, load.prompt.mean, load.new.mean, description, make_workload(load, names)
    )


def from_file(workload: Workload, rate: float | None) -> OfferedLoad:
    """The load given by a file of requests; with `rate`, arrivals are stretched to that rate.

    Raises UsageError if all requests arrive at the same time and no rate is given.
    """
    own = busiest_rate(workload.at_s)
    if rate is None and not own:
        fact = f"its {len(workload)} requests come at one time"
        raise UsageError("--workload", fact, "give --rate, or a file with the times of its requests")
    shares = np.bincount(workload.expert_index, minlength=len(workload.names)) / len(workload)
    means = float(workload.prompt_tokens.mean()), float(workload.new_tokens.mean())
    description = (
        f"{rate or own:.3g} requests/s{'' if rate else ', those of its busiest minute'}, {len(workload)} of a file"
    )
    stretched = replace(workload, at_s=workload.at_s * (own / rate)) if rate and own else workload
    return OfferedLoad(shares, rate or own, *means, description, stretched)


def busiest_rate(at_s: F64) -> float:
    """Requests per second in the busiest window of BUSY_S, or overall if the span is shorter; 0 if it is empty."""
    span_s = float(at_s[-1] - at_s[0]) if len(at_s) else 0.0
    if span_s <= 0:
        return 0.0
    if span_s <= BUSY_S:
        return len(at_s) / span_s
    ends = np.searchsorted(at_s, at_s + BUSY_S, side="left")
    return float((ends - np.arange(len(at_s))).max()) / BUSY_S

"""Groups of experts that share steps; a shared step also reads the own weights of every expert in it.

    adapters   a 2/s   b 1/s   c 1/s   d 4/s          a, b, c of one base, d of another
    groups     a b c 4/s               d 4/s

Knows nothing about queueing; capacity.py treats a group like a single expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from coterie.plan.mix import F64, I64
from coterie.plan.prices import Machine, Steps

_MIN_SEQUENCES = 2.0  # smallest batch that can have several experts


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """`of`: each expert's group. `steps`, `rates`, `own_s` (time that each further expert adds to a step): per group.

    `shares`: for each group of several experts, the experts' shares of its requests.
    """

    of: I64
    steps: Steps
    rates: F64
    own_s: F64
    shares: dict[int, F64]

    @property
    def shared(self) -> bool:
        """Whether any group has several experts."""
        return bool(self.shares)

    def for_batches(self, batches: F64) -> Groups:
        """Adjust the cost of further sequences for the expected number of experts in batches of this size."""
        more, prefill_more = self.steps.more_s.copy(), self.steps.prefill_more_s.copy()
        for group, shares in self.shares.items():
            size = max(float(batches[group]), _MIN_SEQUENCES)
            experts = float((1 - (1 - shares) ** size).sum())  # expected number in such a batch
            added = float(self.own_s[group]) * (experts - 1) / (size - 1)
            more[group] += added
            prefill_more[group] += added
        return replace(self, steps=replace(self.steps, more_s=more, prefill_more_s=prefill_more))


def groups_of(machine: Machine, rates: F64) -> Groups:
    """Group a machine's experts, given their request rates."""
    alone = np.arange(len(rates))
    own = np.zeros(len(machine.shape_bytes)) if machine.own_s is None else np.nan_to_num(machine.own_s, posinf=0.0)
    if machine.variant_group is None:
        return Groups(alone, machine.steps.of(machine.shape), rates, own[machine.shape], {})
    keys = np.where(machine.variant_group < 0, -1 - alone, machine.variant_group)
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    sums: F64 = np.bincount(of, rates, len(first)).astype(np.float64)
    shape = machine.shape[first]
    shares = {
        group: rates[of == group] / sums[group]
        for group in np.flatnonzero(np.bincount(of) > 1).tolist()
        if sums[group] > 0
    }
    return Groups(of, machine.steps.of(shape), sums, own[shape], shares)

"""Together: experts that share steps as one group, whose steps read the own weights of each expert in them.

    adapters   a 2/s   b 1/s   c 1/s   d 4/s          a, b, c of one base, d of another
    groups     a b c 4/s               d 4/s

Knows nothing about waiting; capacity.py balances groups as it does experts that run alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from coterie.plan.mix import F64, I64
from coterie.plan.prices import Machine, Steps

_MIN_SEQUENCES = 2.0  # sequences of which the second may be another expert's


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """`of`: each expert's group. `steps` and `rates` are the groups' own; `own_s` what each further expert adds.

    `shares`: of a group that several experts share, how often each of them is asked for, among its own.
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

    def beside(self, batches: F64) -> Groups:
        """The same, whose further sequences cost what they do in batches of this size, on average."""
        more, prefill_more = self.steps.more_s.copy(), self.steps.prefill_more_s.copy()
        for group, shares in self.shares.items():
            size = max(float(batches[group]), _MIN_SEQUENCES)
            experts = float((1 - (1 - shares) ** size).sum())  # that are in such a batch
            added = float(self.own_s[group]) * (experts - 1) / (size - 1)
            more[group] += added
            prefill_more[group] += added
        return replace(self, steps=replace(self.steps, more_s=more, prefill_more_s=prefill_more))


def groups_of(machine: Machine, rates: F64) -> Groups:
    """Who shares steps on a machine whose experts are asked for at these rates."""
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

"""The path weights take: which tiers are managed, which link fills each, and the links' relative costs.

Knows nothing about experts or extents; reads a MachineSpec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError, UsageError
from coterie.spec.machine import MachineSpec


def managed_tiers(spec: MachineSpec, tiers: Mapping[str, int]) -> tuple[str, ...]:
    """The tiers that have a budget, nearest first.

    Raises UsageError unless they are the run tier and those directly below it, CapacityError for a budget below one
    block.
    """
    names = tuple(name for name in spec.weight_tiers if name in tiers)
    if len(names) != len(tiers) or names != spec.weight_tiers[: len(names)] or not names:
        has, given = ", ".join(spec.weight_tiers), ", ".join(tiers) or "none"
        raise UsageError(
            spec.name, f"budgets are for {given} but weights live in {has}", "give one from the first on, without a gap"
        )
    for name, budget_bytes in tiers.items():
        if budget_bytes < BLOCK_BYTES:
            raise CapacityError(
                name, "the smallest expert", BLOCK_BYTES, max(budget_bytes, 0), ["give a larger budget"]
            )
    return names


def fill_links(spec: MachineSpec, names: Sequence[str]) -> tuple[str, ...]:
    """The link that fills each managed tier, as `src->dst`; the lowest is filled from the files."""
    lowest = spec.weight_tiers[len(names)] if len(names) < len(spec.weight_tiers) else "disk"
    return tuple(f"{src}->{dst}" for src, dst in zip([*names[1:], lowest], names, strict=True))


def link_weights(spec: MachineSpec, links: Sequence[str]) -> tuple[int, ...]:
    """How many times slower than the fastest each link is, rounded so that small differences do not sway eviction."""
    rates = {f"{link.src}->{link.dst}": link.bytes_per_s for link in spec.links}
    fastest = max((rates.get(link, 0.0) for link in links), default=0.0)
    return tuple(max(1, round(fastest / rates[link])) if rates.get(link, 0.0) > 0 else 1 for link in links)

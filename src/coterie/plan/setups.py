"""Setups: named pairs of a schedule and an eviction policy that are compared with each other.

Knows nothing about how they are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coterie.core.errors import UsageError
from coterie.engine.assembly import Settings
from coterie.engine.policy import Policy


@dataclass(frozen=True, slots=True)
class Setup:
    """How to serve: a schedule and an eviction policy; and whether requests have the priorities that they ask for."""

    name: str
    policy: Policy
    evict: str
    ranks: bool = True


# The paper's runtime: no prefetch, no reordering, the whole expert is copied before it runs (section V-B).
FCFS = Setup("fcfs", Policy(schedule="fcfs", overlap=False, prefetch=0), "lru")
SERVING = Settings()  # as `coterie serve` does by default: what is compared is what is served
OURS = Setup("coterie", SERVING.policy, SERVING.evict)
APART = Setup("apart", replace(OURS.policy, share_steps=False), OURS.evict)  # adapters of one base do not share steps
EQUAL = Setup("equal", OURS.policy, OURS.evict, ranks=False)  # as if nobody asked for a priority
SETUPS: Mapping[str, Setup] = {setup.name: setup for setup in (FCFS, OURS, APART, EQUAL)}


def setup_named(name: str) -> Setup:
    """The setup of that name. Raises UsageError."""
    if name not in SETUPS:
        raise UsageError("--policy", f"{name!r} is not a policy", f"use one of {', '.join(SETUPS)}")
    return SETUPS[name]

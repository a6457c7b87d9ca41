"""Setups: named combinations of scheduling and eviction policy, for comparison.

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
    """A scheduling policy and an eviction policy; `ranks`: whether requests' priorities are respected."""

    name: str
    policy: Policy
    evict: str
    ranks: bool = True


# The paper's runtime: no prefetch, no reordering, an expert runs only once it is copied completely (section V-B).
FCFS = Setup("fcfs", Policy(schedule="fcfs", overlap=False, prefetch=0), "lru")
SERVING = Settings()  # the defaults of `coterie serve`
OURS = Setup("coterie", SERVING.policy, SERVING.evict)
APART = Setup("apart", replace(OURS.policy, share_steps=False), OURS.evict)  # adapters of one base do not share steps
EQUAL = Setup("equal", OURS.policy, OURS.evict, ranks=False)  # priorities are ignored
SETUPS: Mapping[str, Setup] = {setup.name: setup for setup in (FCFS, OURS, APART, EQUAL)}


def setup_named(name: str) -> Setup:
    """Look a setup up by name. Raises UsageError."""
    if name not in SETUPS:
        raise UsageError("--policy", f"{name!r} is not a policy", f"use one of {', '.join(SETUPS)}")
    return SETUPS[name]

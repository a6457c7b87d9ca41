"""Mixes: which expert each request of a workload asks for, drawn from a seed.

    uniform   every expert equally often
    zipf      the expert of rank r with weight 1 / r
    bursty    many bursts at a time, each for one expert and of geometric length; every request belongs to one of them

Knows nothing about prompts, engines or time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from coterie.core.errors import UsageError

BURSTS_SHARE = 0.4  # of the experts are in a burst at any time: more than fit, or every policy would do
BURST_REQUESTS = 16  # mean length of a burst


def draw(mix: str, experts: int, requests: int, seed: int) -> tuple[int, ...]:
    """The expert of each request, by number. Raises UsageError for an unknown mix."""
    if mix not in MIXES:
        raise UsageError("--mix", f"{mix!r} is not a mix", f"use one of {', '.join(MIXES)}")
    return MIXES[mix](np.random.default_rng(seed), experts, requests)


def _uniform(rng: np.random.Generator, experts: int, requests: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, experts, requests).tolist())


def _zipf(rng: np.random.Generator, experts: int, requests: int) -> tuple[int, ...]:
    weights = 1 / np.arange(1, experts + 1)
    ranked = rng.permutation(experts)  # so that rank and size have nothing to do with each other
    return tuple(ranked[rng.choice(experts, requests, p=weights / weights.sum())].tolist())


def _bursty(rng: np.random.Generator, experts: int, requests: int) -> tuple[int, ...]:
    going = rng.choice(experts, max(1, round(experts * BURSTS_SHARE)), replace=False)
    asked = []
    for _ in range(requests):
        burst = int(rng.integers(len(going)))
        asked.append(int(going[burst]))
        if rng.random() < 1 / BURST_REQUESTS:
            going[burst] = rng.integers(experts)
    return tuple(asked)


MIXES: Mapping[str, Callable[[np.random.Generator, int, int], tuple[int, ...]]] = {
    "uniform": _uniform,
    "zipf": _zipf,
    "bursty": _bursty,
}

"""Workloads: sequences of requests with expert, arrival time and lengths; reproducible from a seed.

    open loop     poisson, bursty or steady arrivals at a rate, independent of completions
    closed loop   a fixed number of requests in flight: each completion is followed by the next request

Knows nothing about engines or machines. Files of requests are read by workload_file.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coterie.core.errors import UsageError
from coterie.plan.mix import F64, I64, Mix

MAX_TOKENS = 1 << 31  # upper bound on a length; more than any context holds
MAX_SIGMA = 10.0  # upper bound for lognormal lengths; here the mean is e^50 times the median
MAX_SPAN_S = 1e8  # from first to last arrival; beyond this a double-precision clock is coarser than 10 ns
POISSON = "poisson"
BURST_CV = 3.0  # coefficient of variation of the gaps of bursty arrivals (poisson: 1, steady: 0)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """N requests, by arrival. `expert_index`: index of the expert in `names`; `at_s`: arrival time from the start.

    `in_flight` above 0: a closed loop, in which `at_s` is not used. `facts`: how it was generated. `priorities`: None
    if all are equal.
    """

    names: tuple[str, ...]
    expert_index: I64
    at_s: F64
    prompt_tokens: I64
    new_tokens: I64
    in_flight: int = 0
    facts: Mapping[str, Any] | None = None
    priorities: I64 | None = None

    def __post_init__(self) -> None:
        if not self.in_flight and self.at_s.max(initial=0.0) > MAX_SPAN_S:
            fact = f"the last request comes after {self.at_s.max():.3g} s, and modelled time is exact to {MAX_SPAN_S:g}"
            raise UsageError("workload", fact, "give fewer requests, or more of them per second")

    def __len__(self) -> int:
        return len(self.expert_index)

    @property
    def longest(self) -> int:
        """Largest number of prompt plus answer tokens of any request."""
        return int((self.prompt_tokens + self.new_tokens).max(initial=0))

    @property
    def by_priority(self) -> dict[int, I64]:
        """Indices of the requests of each priority, best first."""
        given = self.ranks
        return {int(priority): np.flatnonzero(given == priority) for priority in np.unique(given)}

    @property
    def ranks(self) -> I64:
        """The priority of each request; lower is better."""
        return np.zeros(len(self), np.int64) if self.priorities is None else self.priorities

    def only(self, chosen: I64) -> Workload:
        """The requests at these indices, for one of several machines; closed-loop slots are divided in proportion."""
        in_flight = self.in_flight and max(1, round(self.in_flight * len(chosen) / max(len(self), 1)))
        return replace(
            self,
            expert_index=self.expert_index[chosen],
            at_s=self.at_s[chosen],
            prompt_tokens=self.prompt_tokens[chosen],
            new_tokens=self.new_tokens[chosen],
            in_flight=in_flight,
            priorities=None if self.priorities is None else self.priorities[chosen],
        )

    def within(self, max_context: int, clip: bool) -> Workload:
        """Fit requests into a context: too long ones are truncated if `clip`, else raise UsageError."""
        total = self.prompt_tokens + self.new_tokens
        if self.longest <= max_context:
            return self
        if not clip:
            number = int(total.argmax())
            fact = f"request {number + 1} has {self.prompt_tokens[number]} + {self.new_tokens[number]} tokens"
            raise UsageError("workload", f"{fact} but the context holds {max_context}", "use --clip, or fewer tokens")
        new = np.minimum(self.new_tokens, max_context - 1)
        return replace(self, prompt_tokens=np.minimum(self.prompt_tokens, max_context - new), new_tokens=new)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A number of tokens, fixed or a distribution with its parameters."""

    text: str
    kind: str
    values: tuple[float, ...]

    def draw(self, rng: np.random.Generator, count: int) -> I64:
        """Draw `count` lengths, 1 to MAX_TOKENS."""
        return np.clip(np.rint(_LENGTHS[self.kind][1](rng, self.values, count)), 1, MAX_TOKENS).astype(np.int64)

    @property
    def mean(self) -> float:
        """The mean of the distribution, before rounding and clipping."""
        return _LENGTHS[self.kind][2](self.values)


_Draw = Callable[[np.random.Generator, Sequence[float], int], F64]
_LENGTHS: Mapping[str, tuple[int, _Draw, Callable[[Sequence[float]], float]]] = {
    "fixed": (1, lambda rng, v, n: np.full(n, v[0]), lambda v: v[0]),
    "uniform": (2, lambda rng, v, n: rng.integers(int(v[0]), int(v[1]) + 1, n).astype(float), lambda v: sum(v) / 2),
    "geometric": (1, lambda rng, v, n: rng.geometric(1 / v[0], n).astype(float), lambda v: v[0]),
    "lognormal": (
        2,
        lambda rng, v, n: v[0] * np.exp(v[1] * rng.standard_normal(n)),
        lambda v: v[0] * math.exp(v[1] ** 2 / 2),
    ),
}


def lengths_named(text: str, option: str) -> Lengths:
    """Parse 128, uniform:64:256, geometric:20 (mean) or lognormal:128:0.8 (median, sigma). Raises UsageError."""
    kind, *numbers = text.split(":")
    if not numbers:
        kind, numbers = "fixed", [kind]
    remedy = "write 128, uniform:64:256, geometric:20 or lognormal:128:0.8"
    if kind not in _LENGTHS or len(numbers) != _LENGTHS[kind][0]:
        raise UsageError(option, f"{text!r} is no number of tokens", remedy)
    try:
        values = tuple(float(number) for number in numbers)
    except ValueError as error:
        raise UsageError(option, f"{text!r} is no number of tokens", remedy) from error
    scale = values if kind != "lognormal" else values[:1]
    if not all(math.isfinite(v) and v >= 0 for v in values) or min(scale) < 1:
        raise UsageError(option, f"{text!r} is not 1 token or more", remedy)
    if max(scale) > MAX_TOKENS or (kind == "lognormal" and values[1] > MAX_SIGMA):
        raise UsageError(option, f"{text!r} goes beyond {MAX_TOKENS} tokens or a sigma of {MAX_SIGMA:g}", remedy)
    if kind == "uniform" and values[0] > values[1]:
        raise UsageError(option, f"{text!r} ends before it begins", remedy)
    return Lengths(text, kind, values)


@dataclass(frozen=True, slots=True)
class Load:
    """Parameters of a generated workload. Exactly one of `rate` (requests per second) and `in_flight` must be given.

    `low_priority_share`: share of requests with priority 1; the others have 0, which goes first.
    """

    requests: int
    mix: Mix
    prompt: Lengths
    new: Lengths
    rate: float | None = None
    in_flight: int | None = None
    arrivals: str = POISSON
    seed: int = 7
    low_priority_share: float = 0.0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise UsageError("--requests", f"is {self.requests}", "give 1 or more")
        if (self.rate is None) == (self.in_flight is None):
            given = "both are given" if self.rate is not None else "neither is given"
            raise UsageError("--rate and --in-flight", given, "give one: an open loop or a closed one")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError("--rate", f"is {self.rate:g} requests/s", "give a number above 0")
        if self.in_flight is not None and self.in_flight < 1:
            raise UsageError("--in-flight", f"is {self.in_flight}", "give 1 or more")
        if not 0 <= self.low_priority_share < 1:
            raise UsageError("--behind", f"is {self.low_priority_share:g}", "give a share, from 0 to below 1")
        if self.arrivals not in ARRIVALS:
            raise UsageError("--arrivals", f"{self.arrivals!r} is not known", f"use one of {', '.join(ARRIVALS)}")
        if self.in_flight is not None and self.arrivals != POISSON:
            fact = f"{self.arrivals} arrivals are of an open loop"
            raise UsageError("--arrivals", fact, "leave it out, or give --rate in place of --in-flight")


def make_workload(load: Load, names: Sequence[str]) -> Workload:
    """Generate a workload for the named experts."""
    count, facts = load.requests, _facts(load)
    at_s = np.zeros(count)
    if load.rate is not None:
        gaps = ARRIVALS[load.arrivals](np.random.default_rng([load.seed, 1]), count)
        at_s = np.cumsum(gaps / load.rate)
    return Workload(
        names=tuple(names),
        expert_index=load.mix.draw(len(names), count, load.seed),
        at_s=at_s,
        prompt_tokens=load.prompt.draw(np.random.default_rng([load.seed, 2]), count),
        new_tokens=load.new.draw(np.random.default_rng([load.seed, 3]), count),
        in_flight=load.in_flight or 0,
        facts=facts,
        priorities=draw_priorities(load.low_priority_share, count, load.seed) if load.low_priority_share else None,
    )


def draw_priorities(share: float, count: int, seed: int) -> I64:
    """Random priorities: 1 for about `share` of the requests, 0 for the others."""
    return (np.random.default_rng([seed, 5]).random(count) < share).astype(np.int64)


def _facts(load: Load) -> Mapping[str, Any]:
    closed = {"in_flight": load.in_flight} if load.in_flight else {}
    opened = {"rate_per_s": load.rate, "arrivals": load.arrivals} if load.rate else {}
    more = {"mix": load.mix.text, "prompt_tokens": load.prompt.text, "new_tokens": load.new.text, "seed": load.seed}
    ranked = {"behind": load.low_priority_share} if load.low_priority_share else {}
    return {"requests": load.requests, **closed, **opened, **more, **ranked}


def _gamma(rng: np.random.Generator, count: int) -> F64:
    shape = 1 / BURST_CV**2
    return rng.gamma(shape, 1 / shape, count)


ARRIVALS: Mapping[str, Callable[[np.random.Generator, int], F64]] = {
    POISSON: lambda rng, count: rng.exponential(1.0, count),
    "bursty": _gamma,
    "steady": lambda rng, count: np.ones(count),
}

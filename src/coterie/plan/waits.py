"""Waiting times before the first token, modelled as sums of exponential times, and their quantiles.

Knows nothing about machines or what the times consist of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """A class of requests that take `own_s`. `hit`, `missed`: its shares of all requests without and with a switch."""

    own_s: float
    switch_s: float
    hit: float
    missed: float


@dataclass(frozen=True, slots=True)
class Waits:
    """The waits of a request: for the steps of others, and on a miss also for its switch and those queued before it.

    The former is exponential with mean `steps_s`; the latter, with probability `link`, exponential with mean `queue_s`.
    """

    groups: Sequence[Group]
    steps_s: float
    link: float
    queue_s: float

    def quantile(self, share: float) -> float:
        """The quantile of waiting plus own time over all requests."""
        low = 0.0
        high = max(group.own_s + group.switch_s for group in self.groups) + 40 * (self.steps_s + self.queue_s)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.longer(middle) > 1 - share else (low, middle)
        return high

    def longer(self, seconds: float) -> float:
        """The share of requests that take longer than this."""
        found = 0.0
        for group in self.groups:
            rest = seconds - group.own_s
            if group.hit:
                found += group.hit * self._tail(rest, 0.0)
            if group.missed:
                rest -= group.switch_s
                behind, alone = self._tail(rest, self.queue_s), self._tail(rest, 0.0)
                found += group.missed * (self.link * behind + (1 - self.link) * alone)
        return found

    def _tail(self, seconds: float, queue_s: float) -> float:
        return 1.0 if seconds < 0 else tail(seconds, self.steps_s, queue_s)


def exponential_quantile(share: float) -> float:
    """The quantile of an exponential distribution, relative to its mean."""
    return math.log(1 / (1 - min(share, 0.9999)))


def tail(seconds: float, first_s: float, second_s: float) -> float:
    """The probability that the sum of two exponential times with these means exceeds `seconds`."""
    short, long = sorted((first_s, second_s))
    if long <= 0:
        return 0.0
    if short < 1e-6 * long:
        return math.exp(-seconds / long)
    if long - short < 1e-3 * long:
        return math.exp(-seconds / long) * (1 + seconds / long)
    return (long * math.exp(-seconds / long) - short * math.exp(-seconds / short)) / (long - short)

"""Together: the statuses of several devices as one, which keeps each.

    counts, bytes    summed        an expert    its nearest copy        times    ages, as each device has its own clock

Knows nothing about where they come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace

from coterie.api.status import ExpertStatus, KvStatus, PriorityStatus, State, Status, TierStatus, sum_of
from coterie.core.grouped import grouped
from coterie.engine.metrics import Histogram, Metrics, PriorityMetrics

_NEAREST: tuple[State, ...] = ("resident", "loading", "absent")


def together(names: Sequence[str], each: Sequence[Status]) -> Status:
    """Several devices' statuses as one. `names`: the devices'."""
    first = each[0]
    by_name = grouped((expert.name, (expert, status.now_s)) for status in each for expert in status.experts)
    tiers = grouped(((tier.tier, tier.of), tier) for status in each for tier in status.tiers)
    return replace(
        first,
        device=", ".join(dict.fromkeys(status.device for status in each)),
        experts=tuple([_expert(found, first.now_s) for found in by_name.values()]),
        tiers=tuple([_tier(found) for found in tiers.values()]),
        kv=_kv([status.kv for status in each]),
        running=sum([status.running for status in each]),
        waiting=sum([status.waiting for status in each]),
        held=sum([status.held for status in each]),
        metrics=metrics_of([status.metrics for status in each]),
        moves=sum_of([status.moves for status in each]),
        by_priority={
            of: PriorityStatus(
                *[sum([getattr(status.by_priority[of], its.name) for status in each]) for its in fields(PriorityStatus)]
            )
            for of in first.by_priority
        },
        lacks=tuple(dict.fromkeys([lack for status in each for lack in status.lacks])),
        devices=dict(zip(names, each, strict=True)),
    )


def _expert(found: Sequence[tuple[ExpertStatus, float]], now_s: float) -> ExpertStatus:
    nearest = min([expert for expert, _ in found], key=lambda expert: _NEAREST.index(expert.state))
    ages = [its_now_s - expert.last_used_s for expert, its_now_s in found if expert.last_used_s is not None]
    return replace(
        nearest,
        pinned=any(expert.pinned for expert, _ in found),
        running=sum([expert.running for expert, _ in found]),
        waiting=sum([expert.waiting for expert, _ in found]),
        last_used_s=now_s - min(ages) if ages else None,
    )


def _tier(found: Sequence[TierStatus]) -> TierStatus:
    capacity_bytes, used_bytes, experts = (
        sum([getattr(tier, name) for tier in found]) for name in ("capacity_bytes", "used_bytes", "experts")
    )
    return replace(found[0], capacity_bytes=capacity_bytes, used_bytes=used_bytes, experts=experts)


def _kv(found: Sequence[KvStatus]) -> KvStatus:
    """Block sizes are equal: they follow from the experts, which are the same."""
    blocks, used, cached = (sum([getattr(kv, name) for kv in found]) for name in ("blocks", "used", "cached"))
    return replace(found[0], blocks=blocks, used=used, cached=cached)


def metrics_of(each: Sequence[Metrics]) -> Metrics:
    """The sum of several devices' metrics, without the times when answers ended, which are on different clocks."""
    total = Metrics()
    for metrics in each:
        for its in fields(Metrics):
            mine, other = getattr(total, its.name), getattr(metrics, its.name)
            if its.name == "max_overtaken":
                total.max_overtaken = max(mine, other)
            elif isinstance(other, int):
                setattr(total, its.name, mine + other)
            elif isinstance(other, Histogram):
                _add(mine, other)
            elif isinstance(other, Counter):
                mine.update(other.copy())  # copied first: the device may be counting concurrently
        for name, counts in metrics.by_expert.items():
            total.by_expert[name].update(counts.copy())
        for of, its_class in metrics.by_priority.items():
            _add_class(total.by_priority[of], its_class)
    return total


def _add(total: Histogram, other: Histogram) -> None:
    total.counts = [a + b for a, b in zip(total.counts, other.counts, strict=True)]
    total.total += other.total
    total.sum_s += other.sum_s


def _add_class(total: PriorityMetrics, other: PriorityMetrics) -> None:
    _add(total.queued, other.queued)
    _add(total.ttft, other.ttft)
    total.pauses += other.pauses

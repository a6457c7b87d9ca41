"""GET /metrics: a Status in the text formats of Prometheus and OpenMetrics.

Durations and rates are on the device's clock. Knows nothing about how the numbers are computed.
Source of the naming conventions: the Prometheus documentation, "Metric and label naming".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias, get_args

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coterie import __version__
from coterie.api import Status
from coterie.engine.metrics import BUCKETS_S, PRIORITY_CLASSES, ExpertCount, Histogram
from coterie.engine.request import FinishReason
from coterie.server.response_store import ResponseStore
from coterie.server.worker import Worker

PRIORITY = "priority"  # the label
ON = "on"  # the label for one of several devices
AGE, ABOUT_AGE = "status_age_seconds", "Age of a device's samples while it is in a long step; else 0."
Labelled: TypeAlias = Iterable[tuple[Sequence[str], float]]
"""Label values, in the order of the label names, each with the metric's value."""


OF_EXPERTS: Mapping[ExpertCount, str] = {
    "finished": "Finished requests of an expert.",
    "failed": "Requests of an expert that failed.",
    "prompt_tokens": "Prompt tokens of an expert's finished requests.",
    "drawn_tokens": "Generated tokens of an expert's finished requests.",
    "switches": "Loads of an expert into the run tier that were started.",
}


class StatusCollector(Collector):
    """The metric families of one Status, created on demand."""

    def __init__(self, status: Status, store: ResponseStore | None = None) -> None:
        self._status, self._store = status, store

    def collect(self) -> Iterator[Metric]:
        """All families, once each; with several devices each sample has the label ON, unless it belongs to none."""
        if self._store is not None:
            about = "Stored responses."
            yield _gauges("stored_responses", about, (), [((), len(self._store))])
            yield _gauges("stored_responses_bytes", "Size of the stored responses.", (), [((), self._store.size_bytes)])
        if not self._status.devices:
            yield from self._families(self._status)
            yield _gauges(AGE, ABOUT_AGE, (), [((), sum(self._status.late.values()))])
            return
        each = [list(self._families(status)) for status in self._status.devices.values()]
        for families in zip(*each, strict=True):
            for name, family in zip(self._status.devices, families, strict=True):
                family.samples = [one._replace(labels={**one.labels, ON: name}) for one in family.samples]
            families[0].samples = [one for family in families for one in family.samples]
            yield families[0]
        alive = dict.fromkeys(self._status.devices, 1.0) | dict.fromkeys(self._status.broken, 0.0)
        yield _gauges("device_answers", "1 if a device works, 0 if it has stopped.", (ON,), _labelled(alive))
        avoided = {name: float(name in self._status.avoided) for name in self._status.devices}
        about = "1 if a device is used only as a last resort, because it hangs or fails what other devices answer."
        yield _gauges("device_avoided", about, (ON,), _labelled(avoided))
        ages = dict.fromkeys(self._status.devices, 0.0) | dict(self._status.late)
        yield _gauges(AGE, ABOUT_AGE, (ON,), _labelled(ages))

    def _families(self, status: Status) -> Iterator[Metric]:
        about = {"version": __version__, "composition": status.composition, "device": status.device}
        yield InfoMetricFamily("coterie", "The composition and its device.", about)
        yield from _requests(status)
        yield from _priorities(status)
        yield from _durations(status)
        yield from _experts(status)
        yield from _memory(status)


def routes(worker: Worker, store: ResponseStore) -> list[Route]:
    """The endpoint. Negotiated by `Accept`; the older text format is the default."""

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        status = await worker.status()
        return Response(encode(StatusCollector(status, store)), headers={"content-type": content_type})

    return [Route("/metrics", metrics, methods=["GET"])]


def _requests(status: Status) -> Iterator[Metric]:
    metrics = status.metrics
    yield _counter("requests_submitted", "Accepted requests.", metrics.submitted)
    yield _counter("requests_refused", "Requests refused because the queue was full.", metrics.refused)
    yield _counter("requests_admitted", "Requests admitted from the queue.", metrics.admitted)
    ends = {reason: metrics.finished.get(reason, 0) for reason in get_args(FinishReason)}
    yield _counters("requests_finished", "Finished requests, by reason.", ("reason",), _labelled(ends))
    now = {"running": status.running, "waiting": status.waiting}
    yield _gauges("requests", "Running and waiting requests.", ("state",), _labelled(now))
    yield _gauges(
        "held_requests", "Waiting requests beyond their client's share of the queue.", (), [((), status.held)]
    )
    queued = {
        (expert.name, state): count
        for expert in status.experts
        for state, count in (("running", expert.running), ("waiting", expert.waiting))
    }
    yield _gauges("expert_requests", "Running and waiting requests by expert.", ("expert", "state"), queued.items())
    about = "Requests routed to the fallback because the router was unsure."
    yield _counter("fallbacks", about, metrics.fallbacks)
    yield _counter("hits", "Finished requests whose expert was resident on arrival.", metrics.hits)
    yield _counter("misses", "Finished requests whose expert was not resident on arrival.", metrics.misses)
    yield _counter("prompt_tokens", "Prompt tokens of admitted requests.", metrics.prompt_tokens)
    yield _counter("cached_tokens", "Prompt tokens found in the prefix cache.", metrics.cached_tokens)
    yield _counter("drawn_tokens", "Generated tokens.", metrics.drawn_tokens)
    yield _counter("guessed_tokens", "Tokens drafted by speculative decoding.", metrics.guessed_tokens)
    yield _counter("accepted_tokens", "Drafted tokens that were accepted.", metrics.accepted_tokens)
    yield _counter("drafted_tokens", "Tokens drafted by draft experts.", metrics.drafted_tokens)
    yield _counter(
        "accepted_drafted_tokens",
        "Accepted tokens of draft experts.",
        metrics.accepted_drafted_tokens,
    )
    about = "Draft experts that lack memory to draft: once for weights, once for KV state."
    yield _gauges("drafts_without_memory", about, (), [((), len(status.lacks))])
    yield _counter("steps", "Steps of the engine.", metrics.steps)


def _priorities(status: Status) -> Iterator[Metric]:
    so_far, now = status.metrics.by_priority, status.by_priority
    counts = {(r, state): getattr(now[r], state) for r in PRIORITY_CLASSES for state in ("running", "waiting")}
    about = "Running and waiting requests by priority: urgent (below 0), usual (0), behind (above 0)."
    yield _gauges("priority_requests", about, (PRIORITY, "state"), counts.items())
    paused = _labelled({of: now[of].paused for of in PRIORITY_CLASSES})
    yield _gauges(
        "preempted_requests",
        "Waiting requests that had started and were preempted: they gave up their KV state.",
        (PRIORITY,),
        paused,
    )
    pauses = _labelled({of: so_far[of].pauses for of in PRIORITY_CLASSES})
    about = "Preemptions: how often a request gave up its KV state to one of better priority."
    yield _counters("preemptions", about, (PRIORITY,), pauses)
    about = "Time from a request's arrival to its admission."
    yield _histograms("queue", about, {of: so_far[of].queued for of in PRIORITY_CLASSES})
    first = "Time from a request's arrival to its first token."
    yield _histograms("time_to_first_token", first, {of: so_far[of].ttft for of in PRIORITY_CLASSES})


def _durations(status: Status) -> Iterator[Metric]:
    metrics = status.metrics
    about = "Mean time per token of an answer after its first one."
    yield _histograms("time_per_output_token", about, {"": metrics.tpot})
    yield _histograms("switch", "Time from wanting an expert until it is fully loaded.", {"": metrics.switch})


def _experts(status: Status) -> Iterator[Metric]:
    experts = status.experts
    resident = {expert.name: expert.state == "resident" for expert in experts}
    yield _gauges("expert_resident", "1 if an expert is resident in the run tier.", ("expert",), _labelled(resident))
    loading = {expert.name: expert.state == "loading" for expert in experts}
    yield _gauges("expert_loading", "1 if an expert is loading into the run tier.", ("expert",), _labelled(loading))
    pinned = {expert.name: expert.pinned for expert in experts}
    yield _gauges(
        "expert_pinned",
        "1 if an expert is pinned, and so never evicted.",
        ("expert",),
        _labelled(pinned),
    )
    sizes = {expert.name: expert.size_bytes for expert in experts}
    yield _gauges("expert_size_bytes", "Size of an expert's weights.", ("expert",), _labelled(sizes))
    for what, about in OF_EXPERTS.items():
        counts = {expert.name: status.metrics.by_expert[what][expert.name] for expert in experts}
        yield _counters(f"expert_{what}", about, ("expert",), _labelled(counts))
    yield _counter("switches", "Loads into the run tier that were started.", status.metrics.switches)
    yield _counter("fetched_bytes", "Bytes of weights in the loads that were started.", status.metrics.fetched_bytes)
    yield _counter("failed_fetches", "Loads into the run tier that failed.", status.metrics.failed_fetches)


def _memory(status: Status) -> Iterator[Metric]:
    tiers, labels = status.tiers, ("tier", "of")
    capacities = {(tier.tier, tier.of): tier.capacity_bytes for tier in tiers}
    yield _gauges("tier_capacity_bytes", "Capacity of a tier for weights.", labels, capacities.items())
    used = {(tier.tier, tier.of): tier.used_bytes for tier in tiers}
    yield _gauges("tier_used_bytes", "Bytes of weights in a tier.", labels, used.items())
    residents = {(tier.tier, tier.of): tier.experts for tier in tiers}
    yield _gauges("tier_experts", "Experts in a tier, including those being loaded.", labels, residents.items())
    moves = status.moves
    gone = {tier.tier: moves.evictions.get(tier.tier, 0) for tier in tiers}
    yield _counters("evictions", "Experts evicted from a tier.", ("tier",), _labelled(gone))
    moved = _labelled(moves.moved_bytes)
    yield _counters("moved_bytes", "Bytes of weights transferred, by link.", ("link",), moved)
    kv = status.kv
    blocks = {"used": kv.used, "cached": kv.cached, "free": kv.blocks - kv.used - kv.cached}
    yield _gauges("kv_blocks", "Blocks of the KV cache, by state.", ("state",), _labelled(blocks))
    yield _gauges("kv_block_bytes", "Size of a block of the KV cache.", (), [((), kv.block_bytes)])


def _labelled(values: Mapping[str, float]) -> Labelled:
    return [((label,), value) for label, value in values.items()]


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"coterie_{name}", about, value)


def _counters(name: str, about: str, labels: Iterable[str], values: Labelled) -> Metric:
    family = CounterMetricFamily(f"coterie_{name}", about, labels=tuple(labels))
    for key, value in values:
        family.add_metric(key, value)
    return family


def _gauges(name: str, about: str, labels: Iterable[str], values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"coterie_{name}", about, labels=tuple(labels))
    for key, value in values:
        family.add_metric(key, float(value))
    return family


def _histograms(name: str, about: str, found: Mapping[str, Histogram]) -> Metric:
    """By priority; or, for a single entry named "", overall."""
    labels = () if "" in found else (PRIORITY,)
    family = HistogramMetricFamily(f"coterie_{name}_seconds", about, labels=labels)
    ends = [*[str(end) for end in BUCKETS_S], "+Inf"]
    for of, one in found.items():
        counts = list(zip(ends, accumulate(one.counts), strict=True))
        family.add_metric((of,) if labels else (), counts, one.sum_s)
    return family

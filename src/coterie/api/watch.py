"""Watch: reports events of experts and requests to a listener, as they happen. Without a listener nothing is kept.

    engine's log    submit, admit, loaded, failed ---+
    cache's log     miss, evict, fetch, copy, drop --+--> EngineEvent -> sink
    routes, outputs first token, end ----------------+

Knows nothing about who listens, or how; never reports prompts or answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from coterie.api.inflight import InFlight
from coterie.composition.router import Route
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import CoterieError
from coterie.engine.assembly import Parts
from coterie.engine.log import LogEntry
from coterie.engine.request import Output, Timings
from coterie.memory.cache import Decision
from coterie.memory.split import side_of, sides_of
from coterie.memory.transfer import arrived_bytes
from coterie.models.model import Model


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """An event at `at_s` (seconds on the device's clock); `facts` are plain values, for JSON.

    what            facts, in addition to the expert or the request
    load_begun      size_bytes, from, to, links that it passes, evicted: expert and tier of each eviction for it
    load_ended      seconds, bytes_per_s                        load_failed     error
    evicted         tier                                        dropped         tier: unloaded, or its load failed
    pinned, unpinned
    routing         a model is being asked for the route
    routed          expert, confidence, is_fallback, runners_up
    queued, admitted, first_token
    moved           from, on: with several devices, a request moves to another because the first failed it or hangs;
                    any end that the first has reported, or reports later, is void
    stopped         on, error: one of several devices; its requests have ended, or moved
    ended           reason, was (routing, routed, waiting or running), tokens, hit, switch_s, queued_s, ttft_s,
                    total_s, cached_tokens
                    (or, if refused or failed: error)
    """

    what: str
    at_s: float
    facts: Mapping[str, Any]


Sink: TypeAlias = Callable[[EngineEvent], None]
ON = "on"  # the fact that names the device, if there are several


@dataclass(slots=True)
class _Load:
    """A load that the cache is about to start: its evictions and its links so far, the lowest first."""

    evicted: list[dict[str, str]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A query without a token so far. `expert` is empty while a model is asked for the route; `begun`: it is admitted.

    Its expert is `absent`; or `loading`, with `arrived_bytes` of `size_bytes` there; or resident.
    `num_waiting`: waiting requests over all experts.
    """

    expert: str
    begun: bool
    absent: bool
    loading: bool
    arrived_bytes: int
    size_bytes: int
    num_waiting: int


class Watch:
    """Turns logs and outputs into events for the sink set by `follow`.

    Call its methods on the stepping thread, between two steps. `live`: the queries in flight, shared.
    """

    def __init__(self, parts: Parts, models: Mapping[str, Model], live: Mapping[str, InFlight]) -> None:
        self._parts, self._models, self._live = parts, models, live
        self._device, self._log = parts.device, parts.engine.log
        self._caches = sides_of(parts.all_weights)
        self._load = _Load()
        self._sink: Sink | None = None
        self._routing = set[str]()  # requests reported as routing and not yet as routed

    def follow(self, sink: Sink | None) -> None:
        """Report events to `sink` from now on; None: stop. It is called within steps and must return at once."""
        self._sink, self._load = sink, _Load()
        self._routing.clear()
        self._log.follower = None if sink is None else self._engine_said
        for cache in self._caches.values():
            cache.follower = None if sink is None else self._cache_said

    def residents(self) -> list[dict[str, Any]]:
        """Each tier's residents, loading ones included: tier, of (experts or router), capacity_bytes, residents."""
        return [
            {"tier": ledger.tier, "of": of, "capacity_bytes": ledger.capacity_bytes,
             "residents": [name for name, copy in ledger.copies.items() if not copy.is_doomed]}
            for of, cache in self._caches.items()
            for ledger in cache.ledgers
        ]  # fmt: skip

    def waiting(self, request_id: str) -> Waiting | None:
        """What a query waits for; None once it has a token, or if it is not in flight."""
        pending, queue = self._live.get(request_id), self._parts.engine.queue
        if pending is None or pending.token_ids:
            return None
        expert = "" if pending.route is None else pending.route.expert
        name = expert or ROUTER
        size = self._models[name].layout.size_bytes if name in self._models else 0
        copy = side_of(self._parts.all_weights, name).ledgers[0].copies.get(name)
        loading = copy is not None and copy.is_loading
        arrived = arrived_bytes(self._device, copy.layout, copy.arrivals, copy.early) if copy and loading else 0
        begun = any(s.request.request_id == request_id for s in queue.running.get(name, {}).values())
        return Waiting(
            expert, begun, copy is None or copy.is_doomed, loading, min(arrived, size), size, queue.num_waiting
        )

    def routing(self, request_id: str) -> None:
        """A model is being asked for a request's route."""
        if self._sink is not None:
            self._routing.add(request_id)
            self._tell("routing", request=request_id)

    def unrouted(self, request_id: str, reason: str, error: CoterieError | None = None) -> None:
        """A request ends while a model is asked for its route, unless it has ended already."""
        if request_id in self._routing:
            self._routing.remove(request_id)
            failed = {} if error is None else {"error": str(error)}
            self._tell("ended", request=request_id, expert="", reason=reason, was="routing", **failed)

    def handed_over(self, request_id: str) -> None:
        """Another device goes on with a request, and will report its route."""
        self._routing.discard(request_id)

    def refused(self, request_id: str, expert: str, error: CoterieError) -> None:
        """A request was routed, but its expert refuses it."""
        self._tell("ended", request=request_id, expert=expert, reason="refused", was="routed", error=str(error))

    @contextlib.contextmanager
    def routed(self, request_id: str, route: Route) -> Iterator[None]:
        """A request was routed; within this context it is submitted to its expert.

        The reason is not reported: it may quote the prompt.
        """
        self._routing.discard(request_id)
        if self._sink is not None:
            others = [{"expert": name, "confidence": round(share, 4)} for name, share in route.runners_up]
            self._tell("routed", request=request_id, expert=route.expert, confidence=round(route.confidence, 4),
                       is_fallback=route.is_fallback, runners_up=others)  # fmt: skip
        try:
            yield
        except CoterieError as error:
            self.refused(request_id, route.expert, error)
            raise

    def output(self, output: Output) -> None:
        """A step's output for a request; call before it is added to the query's state."""
        if self._sink is None:
            return
        pending = self._live.get(output.request_id)
        before = 0 if pending is None else len(pending.token_ids)
        if before == 0 and output.token_ids and pending is not None:
            self._tell("first_token", request=output.request_id, expert=output.expert_id)
        timings = output.timings
        if output.finish_reason is None or timings is None:
            return
        error = {} if output.error is None else {"error": str(output.error)}
        self._tell("ended", request=output.request_id, expert=output.expert_id, reason=output.finish_reason,
                   tokens=before + len(output.token_ids), **_times(timings), **error)  # fmt: skip

    def _engine_said(self, entry: LogEntry) -> None:
        what, name = str(entry[0]), str(entry[1])
        if what == "submit":
            self._tell("queued", request=name, expert=entry[2])
        elif what == "admit":
            self._tell("admitted", request=name, expert=self._expert(name))
        elif what == "loaded":
            seconds, size = float(entry[2]), self._models[name].layout.size_bytes
            rate = size / seconds if seconds > 0 else 0.0
            self._tell("load_ended", expert=name, size_bytes=size, seconds=seconds, bytes_per_s=rate)
        elif what in ("pin", "unpin"):
            self._tell(f"{what}ned", expert=name)
        elif what == "failed":
            self._tell("load_failed", expert=name, error=entry[2])

    def _cache_said(self, decision: Decision) -> None:
        what, name, where = decision
        if what == "miss":
            self._load = _Load()
        elif what == "evict":
            self._load.evicted.append({"expert": name, "tier": where})
            self._tell("evicted", expert=name, tier=where)
        elif what == "drop":
            self._tell("dropped", expert=name, tier=where)
        elif what in ("fetch", "copy"):
            load = self._load
            load.links.append(where)
            source, target = load.links[0].partition("->")[0], where.partition("->")[2]
            if target == self._parts.plan.spec.run_tier:  # the last link: the whole load has been issued
                size = self._models[name].layout.size_bytes
                self._tell("load_begun", expert=name, size_bytes=size, to=target, links=load.links,
                           evicted=load.evicted, **{"from": source})  # fmt: skip

    def _expert(self, request_id: str) -> str:
        pending = self._live.get(request_id)
        return ROUTER if pending is None or pending.route is None else pending.route.expert

    def _tell(self, what: str, **facts: Any) -> None:
        if self._sink is not None:
            self._sink(EngineEvent(what, self._device.now(), facts))


def _times(timings: Timings) -> dict[str, Any]:
    """Timings of an ended request: seconds from its arrival at its expert."""
    scheduled_s = timings.scheduled_s
    return {
        "was": "waiting" if scheduled_s is None else "running",
        "hit": timings.hit,
        "switch_s": timings.switch_s,
        "queued_s": None if scheduled_s is None else scheduled_s - timings.arrival_s,
        "ttft_s": timings.ttft_s,
        "total_s": timings.end_s - timings.arrival_s,
        "cached_tokens": timings.cached_tokens,
    }

"""Status: where every expert is, what is queued and what has been done, as of one instant between two steps.

    cache (tiers, pins) + queue + KV pool + metrics  --look-->  Status, immutable

Knows nothing about HTTP, and keeps no counts of its own: everything is read from the engine and the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from coterie.composition.composition import Composition
from coterie.composition.routers.llm import ROUTER
from coterie.engine.assembly import Parts
from coterie.engine.bases import folder_of
from coterie.engine.metrics import PRIORITY_CLASSES, Histogram, Metrics, PriorityClass, priority_class
from coterie.engine.sequence import Sequence
from coterie.memory.cache import ExpertCache, Stats
from coterie.memory.split import Side, side_of, sides_of
from coterie.models.model import Model

State = Literal["absent", "loading", "resident"]
KEY_CHARS = 8  # prefix of an architecture key: enough to tell those of one composition apart


@dataclass(frozen=True, slots=True)
class ExpertStatus:
    """One expert, or the router's own model.

    `tier`: the nearest that holds all of it, or that of its files. `size_bytes`: its weights, for an adapter only its
    own; `base`: the expert or folder whose weights it shares, empty if it is no adapter. `architecture`: experts with
    equal keys share programs. `gives`: tokens (and vectors); only vectors; or only scores of documents.
    `last_used_s`: when it last answered, on the device's clock; None: not yet.
    """

    name: str
    state: State
    tier: str
    pinned: bool
    size_bytes: int
    running: int
    waiting: int
    architecture: str
    last_used_s: float | None
    base: str = ""
    gives: str = "tokens"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}  # asdict takes ten times as long


@dataclass(frozen=True, slots=True)
class TierStatus:
    """The part of a tier that holds weights.

    `of`: whose weights: the experts, the bases that adapters share, or the router's own model. `experts`: how many.
    """

    tier: str
    of: Side
    capacity_bytes: int
    used_bytes: int
    experts: int


@dataclass(frozen=True, slots=True)
class KvStatus:
    """Blocks of the KV cache. `used`: owned by sequences; `cached`: unused, but reusable by prefix."""

    block_bytes: int
    blocks: int
    used: int
    cached: int


@dataclass(frozen=True, slots=True)
class PriorityStatus:
    """Present requests of one priority class. `paused`: of the waiting ones, those that had started."""

    running: int
    waiting: int
    paused: int


@dataclass(frozen=True, slots=True)
class Status:
    """As of `now_s` on the device's clock.

    running, waiting: requests, including those of the router's model and of retired experts.
    held: of the waiting ones, those kept out of the queue until their client has a place there again.
    metrics, moves: copies, which do not change; `moves` is of all caches together.
    by_priority: running and waiting requests by class of the requested priority, as in the metrics.
    lacks: a message for each lack of memory that prevents drafting.
    left_out: experts not served, with the reason.
    devices: if there are several, the status of each by name.
    broken: devices that have stopped for good; avoided: those asked only if no other can be; with the reasons.
    late: devices in a long step, for which this is the last known status, with its age in seconds.
    unpinned: experts that lost their pin because a device broke, with the reason.
    """

    composition: str
    device: str
    now_s: float
    experts: tuple[ExpertStatus, ...]
    tiers: tuple[TierStatus, ...]
    kv: KvStatus
    running: int
    waiting: int
    held: int
    metrics: Metrics
    moves: Stats
    by_priority: Mapping[PriorityClass, PriorityStatus]
    lacks: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, Status] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    avoided: Mapping[str, str] = field(default_factory=dict)
    late: Mapping[str, float] = field(default_factory=dict)
    unpinned: Mapping[str, str] = field(default_factory=dict)

    def expert(self, name: str) -> ExpertStatus:
        """One expert. Raises KeyError."""
        for expert in self.experts:
            if expert.name == name:
                return expert
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "composition": self.composition,
            "device": self.device,
            "now_s": self.now_s,
            "running": self.running,
            "waiting": self.waiting,
            "held": self.held,
            "experts": [expert.to_dict() for expert in self.experts],
            "tiers": [asdict(tier) for tier in self.tiers],
            "kv": asdict(self.kv),
            "metrics": _metrics(self.metrics),
            "moves": asdict(self.moves),
            "priorities": {of: self._of_class(of) for of in PRIORITY_CLASSES},
            "lacks": list(self.lacks),
            "left_out": dict(self.left_out),
            "late": dict(self.late),
            **self._several(),
        }

    def _several(self) -> dict[str, Any]:
        if not self.devices:
            return {}
        devices = {name: one.to_dict() for name, one in self.devices.items()}
        why = {"broken": dict(self.broken), "avoided": dict(self.avoided), "unpinned": dict(self.unpinned)}
        return {"devices": devices, **why}

    def _of_class(self, of: PriorityClass) -> dict[str, Any]:
        so_far = self.metrics.by_priority[of]
        times = {"queued": _times(so_far.queued), "ttft": _times(so_far.ttft)}
        return {**asdict(self.by_priority[of]), "pauses": so_far.pauses, **times}


def look(parts: Parts, models: Mapping[str, Model], composition: Composition) -> Status:
    """The present status of the composition's experts. Call between two steps."""
    held, queue = parts.engine.admission.by_expert(), parts.engine.queue
    names = (*composition.names, *[name for name in models if name == ROUTER])
    experts = tuple([_expert(parts, name, models[name], held[name]) for name in names])
    sides = sides_of(parts.all_weights)
    tiers = tuple(
        [
            TierStatus(ledger.tier, of, ledger.capacity_bytes, ledger.used_bytes, len(ledger.copies))
            for of, cache in sides.items()
            for ledger in cache.ledgers
        ]
    )
    kv = KvStatus(parts.kv.block_bytes, parts.kv.num_blocks, parts.kv.used_blocks, parts.kv.cached_blocks)
    return Status(
        composition=composition.name,
        device=parts.device.spec.name,
        now_s=parts.device.now(),
        experts=experts,
        tiers=tiers,
        kv=kv,
        running=sum(map(len, queue.running.values())),
        waiting=queue.num_waiting + held.total(),
        held=held.total(),
        metrics=deepcopy(parts.engine.metrics),
        by_priority=_priorities(parts),
        moves=sum_of([cache.stats for cache in sides.values()]),
        lacks=tuple([str(lack) for lack in parts.engine.drafts.lacks.values()]),
        left_out={name: str(why) for name, why in composition.left_out.items()},
    )


def _expert(parts: Parts, name: str, model: Model, held: int) -> ExpertStatus:
    cache = side_of(parts.all_weights, name)
    state, tier = _place(cache, name, parts.device.spec.home_tier)
    queue = parts.engine.queue
    return ExpertStatus(
        name=name,
        state=state,
        tier=tier,
        pinned=name in cache.pinned,
        size_bytes=model.layout.size_bytes,
        running=len(queue.running.get(name, ())),
        waiting=len(queue.waiting.get(name, ())) + held,
        architecture=model.key[:KEY_CHARS],
        last_used_s=parts.engine.metrics.last_end_s.get(name),
        base=parts.plan.base_of.get(name) or (str(folder_of(model.base)) if model.base else ""),
        gives=model.gives,
    )


def _priorities(parts: Parts) -> dict[PriorityClass, PriorityStatus]:
    queue, held = parts.engine.queue, parts.engine.admission.held
    waits = [one for line in queue.waiting.values() for one in line.values()]
    waits += [one for line in held.values() for one in line.values()]
    runs = _by_class([one for line in queue.running.values() for one in line.values()])
    waiting, paused = _by_class(waits), _by_class([one for one in waits if one.scheduled_s is not None])
    return {of: PriorityStatus(runs[of], waiting[of], paused[of]) for of in PRIORITY_CLASSES}


def _by_class(sequences: Iterable[Sequence]) -> Counter[PriorityClass]:
    return Counter([priority_class(sequence.request.priority) for sequence in sequences])


def _place(cache: ExpertCache, name: str, home_tier: str) -> tuple[State, str]:
    """An expert's state, and the nearest tier that holds all of it, as of the cache's last poll."""
    state: State = "absent"
    for ledger in cache.ledgers:
        copy = ledger.copies.get(name)
        if copy is None or copy.is_doomed:
            continue
        near = ledger is cache.ledgers[0]
        if copy.is_loading:
            state = "loading" if near else state
            continue
        return "resident" if near else state, ledger.tier
    return state, home_tier


def sum_of(stats: list[Stats]) -> Stats:
    """The sum of several caches' counts."""
    total = Stats()
    for each in stats:
        total.hits += each.hits
        total.joins += each.joins
        total.misses += each.misses
        total.failures += each.failures
        for into, of in ((total.evictions, each.evictions), (total.moved_bytes, each.moved_bytes)):
            for key, count in of.items():
                into[key] = into.get(key, 0) + count
    return total


def _metrics(metrics: Metrics) -> dict[str, Any]:
    """All metrics except the times of last answers, reported per expert, and those by priority, reported separately."""
    names = [name for name in metrics.__slots__ if name not in ("last_end_s", "by_priority")]
    found = {name: getattr(metrics, name) for name in (*names, "ttft")}
    times = {name: _times(value) for name, value in found.items() if isinstance(value, Histogram)}
    return {**found, "finished": dict(metrics.finished), **times}


def _times(histogram: Histogram) -> dict[str, float]:
    return {"count": histogram.total, "sum_s": histogram.sum_s}

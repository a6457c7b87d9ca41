"""Coterie: a composition on a device. Submit queries, step, receive chunks; or just ask.

Knows nothing about HTTP or the command line.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.api.assemble import Options, assemble, check_alone
from coterie.api.expert_commands import Controlled
from coterie.api.inflight import InFlight, capped_by_kv
from coterie.api.opened import MemberSetup, open_all, planned
from coterie.api.ready import Experts, Ready, prepared, request_for, route_that_fits
from coterie.api.rescan import Look, Rescan, look_again, rescan
from coterie.api.routings import Routings, begin_routing
from coterie.api.serving import WAIT_S, Serving, Since
from coterie.api.status import Status, look
from coterie.api.touched import Touched
from coterie.api.types import Chunk, Query
from coterie.api.vector_cache import cache_folder
from coterie.api.watch import Sink, Watch
from coterie.composition.composition import Composition, load_composition
from coterie.composition.router import Route
from coterie.composition.routing import Pending, Routing
from coterie.core.errors import ClosedError, ContextError, CoterieError
from coterie.core.trace import Trace
from coterie.engine.assembly import Parts, Plan
from coterie.engine.expert_control import ExpertControl
from coterie.engine.release_idle import release_idle
from coterie.engine.request import Output, Request


class Coterie(Serving, Controlled):
    """Owns the device and everything on it. Thread-safe: one thread at a time takes a step, which serves all of them.

    It closes when it is garbage collected, and at interpreter exit.
    """

    watch: Watch

    def __init__(self, composition: Composition, options: Options | None = None, of: MemberSetup | None = None) -> None:
        """Open every expert and reserve memory, leaving out what the composition allows. Raises CoterieError."""
        self._options = options = check_alone(options or Options())
        self.names = (options.device,)
        opened, made = planned(open_all(composition, options), options) if of is None else (of.opened, of.made)
        self.composition, self.models, self.texts = opened.composition, dict(opened.models), dict(opened.texts)
        self.routing = Routing(self.composition)
        parts = self._parts = assemble(self.models, made, options)
        self._experts = Experts(self.texts, self.models, parts.kv.tokens_held)
        self._touched = parts.engine.before_load = Touched(self.composition, parts, self.models, self.texts, options)
        self.routings = Routings(self.routing, self.texts, self.models, parts.engine, parts.device.synthetic())
        self._pending: dict[str, InFlight] = {}
        self.watch = Watch(self._parts, self.models, self._pending)
        self._unseen: list[Chunk] = []
        self._numbers = itertools.count() if of is None else of.numbers
        self._lock, self._synthetic = threading.RLock(), parts.device.synthetic()
        self._close = weakref.finalize(self, self._parts.device.close)
        self._close.atexit = of is None  # a Fleet closes its own, except those that hang
        taught = None if of is None else of.routing
        self.routing = (
            self.routings.use(taught) if taught is not None else self.routings.teach(options.device, cache_folder())
        )
        self.hand_over: Callable[[str, Ready, float], bool] = lambda *_: False

    @classmethod
    def open(cls, ref: str | Path, options: Options | None = None, leave_out: bool = False) -> Coterie:
        """Open "demo" (a str), a composition.toml or a folder; `leave_out`: skip experts that cannot be opened."""
        return cls(load_composition(ref, leave_out), options)

    @property
    def parts(self) -> Parts:
        """Device, engine, cache and KV pool, for benchmarks and tests."""
        return self._parts

    @property
    def plan(self) -> Plan:
        """How memory is divided."""
        return self._parts.plan

    @property
    def members(self) -> tuple[Coterie, ...]:
        """Only itself: it has one device."""
        return (self,)

    @property
    def idle(self) -> bool:
        """True if nothing is queued or running, and every chunk has been returned."""
        return self._parts.engine.idle and not self._unseen

    @property
    def quiet(self) -> bool:
        """True if it is idle and no expert is being loaded: a step would change nothing."""
        return self.idle and not self._parts.engine.loading

    def route(self, query: Query) -> Route:
        """The router's decision for a query, without running its expert. A model that the router asks is run."""
        begun, request_id = self._begin(query), f"{next(self._numbers):08x}"
        if not begun.asks:
            return self._fitted(query, begun, self.routing.finish(begun))
        with self._opened():
            self.routings.begin(request_id, begun, query)
        try:
            while True:
                with self._opened():
                    if self.routings.done(request_id):
                        return self._fitted(query, begun, self.routings.route(request_id))
                    self._unseen += self._advance(WAIT_S)
        finally:
            with self._lock:
                self.routings.drop(request_id)

    def ready(self, query: Query) -> Ready:
        """Prepare a query for the engine, in any thread. Raises RequestError, NotFoundError, UnsupportedError."""
        try:
            return prepared(query, self._begin(query), self.routing, self._experts)
        except ContextError as error:
            with self._lock:
                self.watch.refused(f"{next(self._numbers):08x}", error.where, error)
            raise

    def submit(self, query: Query | Ready, more: int = 0) -> str:
        """Queue a query and return its id, if the queue has room for it and for `more` of the same client to follow."""
        if isinstance(query, Query):
            self._check_room(query, more)  # before any work: it may be refused
            query = self.ready(query)
        request_id = f"{next(self._numbers):08x}"
        with self._lock:
            self._check_room(query.query, more)
            self.take(query, request_id)
        return request_id

    def take(self, ready: Ready, request_id: str, asked_s: float | None = None) -> None:
        """Queue a ready query under a unique id, regardless of the queue's limit. Raises what `submit` does.

        `asked_s`: seconds since it was submitted, if another device had it first.
        """
        with self._opened():
            if not ready.is_current(self.texts, self.composition.names):  # its expert was replaced or removed
                ready = self.ready(ready.query)
            begun_s = self._parts.device.now() - (asked_s or 0.0)
            pending = InFlight(ready.query, ready.begun.prompt, asked_s=None if asked_s is None else begun_s)
            if ready.route is None or ready.request is None:
                pending.asked_s = begun_s
                self.watch.routing(request_id)
                try:
                    self.routings.begin(request_id, ready.begun, ready.query)
                except CoterieError as error:
                    self.watch.unrouted(request_id, "refused", error)
                    raise
            else:
                self._to_expert(request_id, pending, ready.route, ready.request)
            self._pending[request_id] = pending

    def check(self, ready: Ready) -> None:
        """Raise what `submit` would for a request that can never run here. In any thread."""
        if ready.request is not None:
            self._parts.engine.check(self._capped(ready.request, ready.query))

    def places(self, client: str = "") -> int | None:
        """How many more queries a client may queue now; below 1: none, None: unlimited. Raises ClosedError."""
        with self._opened():
            max_waiting = self._options.max_waiting
            return None if max_waiting is None else self._parts.engine.admission.places(client, max_waiting)

    def step(self, within_s: float | None = None) -> list[Chunk]:
        """Take one engine step; returns the new chunks of each query. Waits at most `within_s` seconds for loads.

        Raises ClosedError.
        """
        with self._opened():
            unseen, self._unseen = self._unseen, []
            return unseen + self._advance(within_s)

    def interrupt(self) -> None:
        """Make a `step` that runs several decode steps stop after the current one. Any thread may call it."""
        self._parts.device.interrupt()

    def cancel(self, request_id: str) -> None:
        """Stop a query; the finish reason of its last chunk is `cancelled`."""
        with self._lock:
            pending = self._pending.get(request_id)
            if pending is not None and pending.route is None:
                pending.cancelled = True
                self.routings.cancel(request_id)
            elif pending is not None:
                self._parts.engine.cancel(request_id)

    def resident(self) -> tuple[str, ...]:
        """Experts in the run tier, least recently used first; then the bases of adapters, which are never evicted."""
        return tuple([name for name in self._parts.all_weights.resident() if name in self.composition.names])

    def status(self) -> Status:
        """Where every expert is, what is queued and what has been done, between two steps. Raises ClosedError."""
        with self._opened():
            return look(self._parts, self.models, self.composition)

    def observe(self, sink: Sink, since: Since) -> tuple[Status, list[dict[str, Any]]]:
        """Report events to `sink` from now on; returns the status, and the residents of each tier."""
        with self._opened():
            self.watch.follow(sink)
            found = self.status(), self.watch.residents()
            since("")
            return found

    def look_again(self) -> Look:
        """What has changed in the file or folder, opened, in any thread. Raises what opening a composition does."""
        return look_again(self.routing, self.models, self.texts, self._options)

    def rescan(self, looked: Look | None = None) -> Rescan:
        """Serve what `look_again` found, or would find now; removed experts get no new requests. Raises the same."""
        looked = looked or self.look_again()
        with self._opened():
            routing, found = rescan(self.routing, looked, self._parts, self.models, self.texts, self._options)
            self.composition, self.routing = routing.composition, self.routings.use(routing)
            self._touched.know(self.composition)
            return found

    def release_idle(self) -> int:
        """Unload all that is not pinned, including KV state, and free its memory; returns the bytes. 0 if not quiet."""
        with self._opened():
            return release_idle(self._parts) if self.quiet else 0

    def trace(self) -> Trace:
        """What ran when, as far as it was recorded. Raises UsageError without Options.record."""
        return self._parts.trace()

    def close(self) -> None:
        """Stop the device and free its memory. Later calls, and those in progress, raise ClosedError."""
        with self._lock:
            self._close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        with self._lock:
            if not self._close.alive:
                fact = "this Coterie is closed"
                raise ClosedError(self.composition.name, fact, "use it inside its with block, or open it again")
            yield

    @contextlib.contextmanager
    def _control(self, expert: str) -> Iterator[tuple[ExpertControl, str]]:
        with self._opened():
            name = self.composition.expert(expert).name
            if self.idle and not self.quiet:  # a load without a request may have ended
                self._unseen += self._advance(0.0)
            yield self._parts.engine.control, name

    def _begin(self, query: Query) -> Pending:
        return begin_routing(self.routing, query, self.texts, self._residents)

    def _residents(self) -> frozenset[str]:
        with self._lock:
            return self._parts.all_weights.residents

    def _check_room(self, query: Query, more: int) -> None:
        """Raise ClosedError, or CrowdedError if the queue is full."""
        with self._opened():
            if (max_waiting := self._options.max_waiting) is not None:
                self._parts.engine.check_room(query.client, max_waiting, 1 + more)

    def _to_expert(self, request_id: str, pending: InFlight, route: Route, request: Request) -> None:
        request = self._capped(request, pending.query)
        with self.watch.routed(request_id, route):
            self._parts.engine.submit(replace(request, request_id=request_id))
        self._parts.engine.metrics.fallbacks += route.is_fallback
        shown = () if request.ignore_end else request.end_ids
        pending.begin(route, request.prompt_ids, self.texts[route.expert].tokenizer, shown)

    def _capped(self, request: Request, query: Query) -> Request:
        return capped_by_kv(request, query, self._parts.kv.tokens_held(self.models[request.expert_id].kv))

    def _fitted(self, query: Query, begun: Pending, route: Route) -> Route:
        if begun.route is not None:
            return route
        return route_that_fits(query, begun.prompt, route, self.routing.others, self._experts)[0]

    def _advance(self, within_s: float | None = None) -> list[Chunk]:
        until = None if within_s is None else self._parts.device.now() + within_s
        chunks = []
        for output in self._parts.engine.step(until):
            self.watch.output(output)
            if output.request_id in self._pending:  # else it was abandoned
                chunks.append(self._chunk(output))
            decided = self.routings.take(output)
            if decided in self._pending:
                chunks += self._decided(decided, output)
        return chunks

    def _decided(self, request_id: str, output: Output) -> list[Chunk]:
        """The router's model has answered: submit to the expert. Returns chunks only if the query ends here."""
        pending = self._pending[request_id]
        try:
            route = self.routings.route(request_id)
            if not pending.cancelled:
                route, request, text = request_for(
                    pending.query, pending.prompt, route, self.routing.others, self._experts
                )
                ready = Ready(pending.query, Pending(pending.prompt, (), route, None), route, request, text)
                asked_s = 0.0 if pending.asked_s is None else self._parts.device.now() - pending.asked_s
                if self.hand_over(request_id, ready, asked_s):
                    del self._pending[request_id]
                    self.watch.handed_over(request_id)
                else:
                    self._to_expert(request_id, pending, route, request)
                return []
        except CoterieError as error:
            del self._pending[request_id]
            self.watch.unrouted(request_id, "error", error)
            return [Chunk(request_id, "", error=error)]
        self.watch.unrouted(request_id, "cancelled")
        pending.route = replace(route, reason="cancelled while the router's model was asked")
        return [self._chunk(replace(output, request_id=request_id, expert_id="", token_ids=(), text=""))]

    def _advance_for(self, wanted: set[str]) -> list[Chunk]:
        """The chunks of these queries from one step, including ones kept earlier; chunks of other queries are kept."""
        with self._lock:
            chunks = self.step(WAIT_S)
            self._unseen += [chunk for chunk in chunks if chunk.request_id not in wanted]
        return [chunk for chunk in chunks if chunk.request_id in wanted]

    def _has_more(self, request_id: str) -> bool:
        """Whether chunks will come or are kept. Takes the lock: another thread may be in the middle of a step."""
        with self._lock:
            return request_id in self._pending or any(chunk.request_id == request_id for chunk in self._unseen)

    def abandon(self, request_ids: Sequence[str]) -> None:
        """Stop these queries and discard their remaining chunks."""
        with self._lock:
            self._unseen = [chunk for chunk in self._unseen if chunk.request_id not in request_ids]
            for request_id in request_ids:
                pending = self._pending.pop(request_id, None)
                if pending is not None and pending.route is None:
                    self.routings.drop(request_id)
                    self.watch.unrouted(request_id, "cancelled")
                elif pending is not None:
                    self._parts.engine.cancel(request_id)

    def _chunk(self, output: Output) -> Chunk:
        pending = self._pending[output.request_id]
        if output.finish_reason is not None:
            del self._pending[output.request_id]
        return pending.chunk(output, self._synthetic)

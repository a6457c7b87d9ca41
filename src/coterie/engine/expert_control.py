r"""Expert control: what an operator requests directly: load, unload, pin and unpin an expert.

    load -> pending_loads --next_load--> Fetch, as for a request -> under way -> resident     its callback is called
                               \---> not now: some must stay, or there is no room yet         (refuse: with an error)

A load may displace an expert that does not run, or whose turn is over. All of it happens between two steps.
Knows nothing about prompts or threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

from coterie.core.errors import ConflictError, CoterieError
from coterie.engine.admission import Admission
from coterie.engine.loads import Loads
from coterie.engine.log import DecisionLog
from coterie.engine.policy import Policy
from coterie.engine.queue import Queue
from coterie.engine.served import ServedExpert, served_as
from coterie.engine.view import READY, Fetch, Residence, View
from coterie.memory.pins import check_room, offsets_if_pinned
from coterie.memory.split import Cache, side_of, stays

LoadCallback: TypeAlias = Callable[[CoterieError | None], None]
"""Called once, between two steps: with None when the expert is fully loaded, else with the error."""


class ExpertControl:
    """Explicit loading, unloading and pinning. `pending_loads`: loads requested and not yet reported.
    `retired`: experts that accept no new requests but finish the ones they have.

    Every method but `next_load`, `settle`, `refuse` and `may_need_memory` raises NotFoundError for an unknown expert.
    """

    def __init__(
        self,
        cache: Cache,
        loads: Loads,
        queue: Queue,
        admission: Admission,
        experts: Mapping[str, ServedExpert],
        log: DecisionLog,
    ) -> None:
        self._cache, self._loads, self._queue, self._admission = cache, loads, queue, admission
        self._experts, self._log = experts, log
        self.pending_loads: dict[str, list[LoadCallback]] = {}
        self.retired: set[str] = set()

    def load(self, expert_id: str, callback: LoadCallback) -> None:
        """Load an expert, or join a load under way. Raises ConflictError if pinned experts leave no room for it."""
        served = served_as(expert_id, self._experts)
        if self._loads.residence(expert_id) is Residence.ABSENT:
            check_room(side_of(self._cache, expert_id), expert_id, served.layout.size_bytes)
        self.pending_loads.setdefault(expert_id, []).append(callback)
        self._log.add("load", expert_id)

    def unload(self, expert_id: str) -> None:
        """Drop every copy of an expert; no effect if there is none.

        Raises ConflictError while it is pinned, has requests, or is being loaded or read.
        """
        served_as(expert_id, self._experts)
        where, cache = f"unload {expert_id}", side_of(self._cache, expert_id)
        if stays(self._cache, expert_id):
            raise ConflictError(where, "it is the base of other experts, which stays", "unload those")
        running, waiting = self._num_requests(expert_id)
        if running or waiting:
            fact = f"{running} requests of it are running and {waiting} waiting"
            raise ConflictError(where, fact, "wait for them, or cancel them")
        if expert_id in cache.pinned:
            raise ConflictError(where, "it is pinned", "unpin it first")
        copies = [ledger.copies[expert_id] for ledger in cache.ledgers if expert_id in ledger.copies]
        if expert_id in self.pending_loads or any(copy.is_busy for copy in copies):
            raise ConflictError(where, "it is being loaded", "ask again when it is resident")
        cache.forget(expert_id)
        self._log.add("unload", expert_id)

    def pin(self, expert_id: str) -> None:
        """Never evict an expert, from now on or once it is loaded. Absent pinned experts keep their room.

        Raises ConflictError if that would leave no room for the largest expert that is not pinned.
        """
        served_as(expert_id, self._experts)
        cache = side_of(self._cache, expert_id)
        same = {n: e.layout.size_bytes for n, e in self._experts.items() if side_of(self._cache, n) is cache}
        cache.pin(
            expert_id,
            offsets_if_pinned(cache, expert_id, {n: size for n, size in same.items() if self.may_need_memory(n)}),
        )
        self._log.add("pin", expert_id)

    def unpin(self, expert_id: str) -> None:
        """Let an expert be evicted again; no effect if it was not pinned."""
        served_as(expert_id, self._experts)
        side_of(self._cache, expert_id).unpin(expert_id)
        self._log.add("unpin", expert_id)

    def retire(self, expert_id: str) -> None:
        """Free an expert's memory, now or, if it is in use, when others need it; it gets no new requests."""
        self.unpin(expert_id)
        self.retired.add(expert_id)
        with contextlib.suppress(ConflictError):
            self.unload(expert_id)

    def forget(self, expert_id: str) -> bool:
        """Drop all state of a retired expert, unless it has requests or a copy in memory; whether it was dropped."""
        if any(self._num_requests(expert_id)) or expert_id in self.pending_loads:
            return False
        with contextlib.suppress(ConflictError):
            self.unload(expert_id)
        cache = side_of(self._cache, expert_id)
        if stays(self._cache, expert_id) or any(expert_id in ledger.copies for ledger in cache.ledgers):
            return False
        self.retired.discard(expert_id)
        self._loads.forget(expert_id)
        cache.uses.forget(expert_id)
        return True

    def may_need_memory(self, expert_id: str) -> bool:
        """Whether an expert may still need memory."""
        return expert_id not in self.retired or any(self._num_requests(expert_id))

    def next_load(self, view: View, policy: Policy) -> Fetch | None:
        """The load to start now, if any; it counts towards the same limit of loads under way as those for requests."""
        ahead = policy.prefetch if policy.overlap else 0
        if view.under_way > ahead:
            return None
        for expert_id in self.pending_loads:
            if self._loads.residence(expert_id) is Residence.ABSENT:
                present = [group for group in view.groups if group.residence is not Residence.ABSENT]
                # Experts that merely have requests waiting may go: they come in turns, so the load might otherwise
                # never start.
                stay = [
                    g for g in present if g.residence is not READY or (g.running and g.turn_steps < policy.turn_steps)
                ]
                keep, spare = ([group.expert_id for group in groups] for groups in (stay, present))
                return Fetch(expert_id, frozenset(keep), frozenset(spare))
        return None

    def settle(self, failed: Mapping[str, CoterieError]) -> None:
        """Report the loads that are done, and those that failed."""
        for expert_id in list(self.pending_loads):
            if expert_id in failed:
                self.refuse(expert_id, failed[expert_id])
            elif self._loads.residence(expert_id) is READY:
                for callback in self.pending_loads.pop(expert_id):
                    callback(None)

    def _num_requests(self, expert_id: str) -> tuple[int, int]:
        """How many of an expert's requests are running, and how many waiting."""
        running, waiting = (len(part.get(expert_id, ())) for part in (self._queue.running, self._queue.waiting))
        return running, waiting + self._admission.by_expert()[expert_id]

    def refuse(self, expert_id: str, error: CoterieError) -> None:
        """Report a failed load to its callers, if any."""
        for callback in self.pending_loads.pop(expert_id, ()):
            callback(error)

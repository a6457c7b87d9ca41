"""A closed loop of requests on a peer whose models share a budget: one at a time, or in batches of one model.

Knows nothing about which model runs next (coe_turns.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Generic, Protocol, Self, TypeVar

from coterie.bench.coe_run import Workload
from coterie.bench.coe_turns import Turns, WaitQueue
from coterie.bench.limits import drop_page_cache
from coterie.bench.peers.peer import Batch, Peer, Session
from coterie.core.errors import CapacityError


class Closable(Protocol):
    """A session or a batch."""

    def close(self) -> None:
        """Release everything."""


Kind = TypeVar("Kind", bound=Closable)


@dataclass(frozen=True, slots=True)
class Files:
    """All experts converted for a peer. `drops_pages`: closed models are dropped from the page cache."""

    peer: Peer
    prepared: Mapping[str, Path]
    drops_pages: bool

    def size_bytes(self, name: str) -> int:
        """Bytes of the files that an open reads."""
        return sum(file.stat().st_size for file in self.peer.files(self.prepared[name]))

    def closed(self, name: str) -> None:
        """Call after closing a model."""
        if self.drops_pages:
            drop_page_cache(*self.peer.files(self.prepared[name]))


class Pool(Generic[Kind]):
    """Open models within a budget of file bytes; the least recently used is closed first."""

    def __init__(self, files: Files, budget_bytes: int, opener: Callable[[Path], Kind]) -> None:
        self._files, self._opener = files, opener
        self._budget_bytes, self._used_bytes = budget_bytes, 0
        self._open: dict[str, Kind] = {}
        self.opened = self.moved_bytes = 0

    @property
    def names(self) -> Collection[str]:
        """The models that are open."""
        return self._open.keys()

    def get(self, name: str) -> Kind:
        """An expert, opened if need be. Raises CapacityError if it alone exceeds the budget."""
        found = self._open.pop(name, None)
        if found is None:
            size = self._files.size_bytes(name)
            if size > self._budget_bytes:
                raise CapacityError("--near", f"{name} in the peer's form", size, self._budget_bytes, ["raise --near"])
            while self._used_bytes + size > self._budget_bytes:
                self._close(next(iter(self._open)))
            found = self._opener(self._files.prepared[name])
            self._used_bytes += size
            self.opened += 1
            self.moved_bytes += size
        self._open[name] = found  # in order of use, most recent last
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        self._open.pop(name).close()
        self._used_bytes -= self._files.size_bytes(name)
        self._files.closed(name)


@dataclass(slots=True)
class Ran:
    """When requests ended, in order of ending, and times to the first token, in seconds.

    The latter count from when the closed loop sent the request. `max_overtaken`: the maximum number of later requests
    admitted before one.
    """

    ends_s: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)
    max_overtaken: int = 0


def one_at_a_time(held: Pool[Session], load: Workload, prompts: Sequence[Sequence[int]]) -> Ran:
    """Serve requests one by one, first come first served."""
    begun, ran = perf_counter(), Ran()
    for number, (name, prompt) in enumerate(zip(load.experts, prompts, strict=True)):
        arrived_s = ran.ends_s[number - load.in_flight] if number >= load.in_flight else 0.0
        session = held.get(name)
        session.prefill(prompt)
        ran.ttfts_s.append(perf_counter() - begun - arrived_s)
        session.decode(load.new_tokens - 1)
        ran.ends_s.append(perf_counter() - begun)
    return ran


def in_batches(
    held: Pool[Batch], load: Workload, prompts: Sequence[Sequence[int]], turns: Turns, age_bound: int
) -> Ran:
    """Serve requests in batches of one model, with `turns.slots` sequences at most."""
    return _InBatches(held, load, prompts, turns, age_bound).run()


class _InBatches:
    """One run. Each running request has a slot; all running requests are for the same model."""

    def __init__(
        self, held: Pool[Batch], load: Workload, prompts: Sequence[Sequence[int]], turns: Turns, age_bound: int
    ) -> None:
        self._held, self._load, self._prompts = held, load, prompts
        self._queue = WaitQueue(turns.grouped, age_bound)
        self._free = list(range(turns.slots))
        self._left: dict[int, int] = {}  # slot -> tokens to go
        self._arrived_s: list[float] = []
        self._begun_s = perf_counter()
        self._ran = Ran()

    def run(self) -> Ran:
        """Run until all requests have ended."""
        for _ in range(min(self._load.in_flight, len(self._prompts))):
            self._arrive(0.0)
        name = ""
        while self._left or len(self._queue):
            if not self._left:
                name = self._queue.next(self._held.names)
            self._step(name)
        self._ran.max_overtaken = self._queue.max_overtaken
        return self._ran

    def _arrive(self, now_s: float) -> None:
        number = len(self._arrived_s)
        self._arrived_s.append(now_s)
        self._queue.add(number, self._load.experts[number])

    def _step(self, name: str) -> None:
        batch = self._held.get(name)
        going = list(self._left)
        begin = {self._free.pop(): number for number in self._queue.join(name, len(self._free))}
        batch.step({slot: self._prompts[number] for slot, number in begin.items()}, going)
        now_s = perf_counter() - self._begun_s
        self._ran.ttfts_s += [now_s - self._arrived_s[number] for number in begin.values()]
        self._left |= dict.fromkeys(begin, self._load.new_tokens)
        for slot in list(self._left):
            self._left[slot] -= 1
            if not self._left[slot]:
                self._end(batch, slot, now_s)

    def _end(self, batch: Batch, slot: int, now_s: float) -> None:
        batch.leave(slot)
        del self._left[slot]
        self._free.append(slot)
        self._ran.ends_s.append(now_s)
        if len(self._arrived_s) < len(self._prompts):
            self._arrive(now_s)

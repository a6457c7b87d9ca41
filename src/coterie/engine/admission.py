"""Admission: a client's requests beyond its share wait here, so that a client with many requests locks no other out.

    one client      ------------------------------> queue        everything at once: more to group by expert
    several         --share--> queue, the rest held              each client's first few compete, in order of arrival
                    one of a client's leaves the queue: its next enters

Knows nothing about who the clients are, or about scheduling decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from coterie.core.errors import CrowdedError, RequestError
from coterie.engine.queue import Queue
from coterie.engine.sequence import Sequence


class Admission:
    """Lets sequences into the queue. While several clients wait, each has at most `share` waiting there.

    When the other client is gone, held requests still enter only as places free up: if released all at once, they would
    be withdrawn again when the next client comes. Sequences without a client are never held. A client's own requests go
    by priority, and only those of equal or better priority count against a request's share. `held`: held sequences by
    client, then request id, in the order in which they will enter.
    """

    def __init__(self, queue: Queue, share: int) -> None:
        self._queue, self._share = queue, share
        self._changed: list[str] = []
        self.held: dict[str, dict[str, Sequence]] = {}

    def __len__(self) -> int:
        return sum([len(held) for held in self.held.values()])

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence into the queue, or hold it. Withdraws other clients' sequences beyond their share."""
        client = sequence.request.client
        shares = bool(client) and self._is_other(client)
        for other in [name for name in self._queue.waiting_by_client if name != client] if shares else ():
            self._withdraw(other)
        full = shares and self._waiting(client, sequence.priority) >= self._share
        if full or self._must_follow_held(sequence):
            self._hold(client, {sequence.request.request_id: sequence})
        else:
            self._enter(sequence)

    def refill(self) -> None:
        """Let held sequences in as far as their clients have places, one of each client in turn."""
        entered = True
        while entered and self.held:
            entered = False
            for client in list(self.held):
                request_id, first = next(iter(self.held[client].items()))
                if self._waiting(client, first.priority) < self._share:
                    self._enter(self._take(client, request_id))
                    entered = True

    def drop(self, sequence: Sequence) -> bool:
        """Remove a held sequence; False if it is not held."""
        client, request_id = sequence.request.client, sequence.request.request_id
        if request_id not in self.held.get(client, ()):
            return False
        self._take(client, request_id)
        return True

    def take_changed(self) -> Collection[str]:
        """The experts whose part of the queue has changed since the last call."""
        taken, self._changed = self._changed, []
        return taken

    def check_room(self, client: str, max_waiting: int, count: int = 1) -> None:
        """See `check_room_among`."""
        check_room_among(self._all_waiting, self._own(client), client, max_waiting, count)

    def places(self, client: str, max_waiting: int) -> int:
        """See `places_among`."""
        return places_among(self._all_waiting, self._own(client), client, max_waiting)

    def by_expert(self) -> Counter[str]:
        """How many sequences are held for each expert."""
        return Counter([s.request.expert_id for held in self.held.values() for s in held.values()])

    @property
    def _all_waiting(self) -> int:
        return self._queue.num_waiting + len(self)

    def _own(self, client: str) -> int:
        """How many of a client's sequences wait, held or in the queue."""
        return self._waiting(client) + len(self.held.get(client, ())) if client else 0

    def _is_other(self, client: str) -> bool:
        """Whether another client has sequences waiting, held or in the queue."""
        return any(name != client for part in (self.held, self._queue.waiting_by_client) for name in part)

    def _waiting(self, client: str, priority: int | None = None) -> int:
        """How many of a client's sequences wait in the queue, optionally only those of this priority or better."""
        queued = self._queue.waiting_by_client.get(client, {})
        return len(queued) if priority is None else sum([sequence.priority <= priority for sequence in queued.values()])

    def _must_follow_held(self, sequence: Sequence) -> bool:
        """Whether its client has a held sequence that goes before this one."""
        first = next(iter(self.held.get(sequence.request.client, {}).values()), None)
        return first is not None and first.priority <= sequence.priority

    def _hold(self, client: str, more: Mapping[str, Sequence], first: bool = False) -> None:
        """Hold more of a client's sequences: by priority, and within one priority last, or `first`."""
        held = self.held.get(client, {})
        line = {**more, **held} if first else {**held, **more}
        self.held[client] = dict(sorted(line.items(), key=lambda item: item[1].priority))

    def _withdraw(self, client: str) -> None:
        """Move a client's queued sequences beyond its share to the front of its held ones."""
        queued = list(self._queue.waiting_by_client[client].values())
        surplus = [sequence for sequence in queued[self._share :] if not sequence.paused]  # these have begun to answer
        if not surplus:
            return
        for sequence in surplus:
            self._queue.drop(sequence)
            self._changed.append(sequence.request.expert_id)
        self._hold(client, {s.request.request_id: s for s in surplus}, first=True)

    def _enter(self, sequence: Sequence) -> None:
        sequence.number = self._queue.take_number()
        self._queue.add(sequence)
        self._changed.append(sequence.request.expert_id)

    def _take(self, client: str, request_id: str) -> Sequence:
        held = self.held[client]
        sequence = held.pop(request_id)
        if not held:
            del self.held[client]
        return sequence


def check_room_among(waiting: int, own: int, client: str, max_waiting: int, count: int = 1) -> None:
    """Raise CrowdedError if a client with `own` waiting requests may not add `count` more.

    `max_waiting`: how many may wait over all clients. Raises RequestError if that many would be
    refused even with an empty queue.
    """
    limit = (max_waiting + 1) // 2 if client else max_waiting
    if count > limit:
        fact = f"asks for {count} answers at once, but no more than {limit} may wait"
        raise RequestError("n", fact, "ask for fewer at once, or serve with a larger --max-waiting")
    if count > places_among(waiting, own, client, max_waiting):
        raise CrowdedError("queue", waiting, max_waiting, own)


def places_among(waiting: int, own: int, client: str, max_waiting: int) -> int:
    """How many more requests a client may add, with `max_waiting` waiting allowed over all clients; below 1: none.

    A client may have about as many waiting as there are free places, so that newcomers find one. Source: A. K.
    Choudhury, E. L. Hahne, IEEE/ACM Transactions on Networking 6(2), 1998: dynamic thresholds.
    """
    left = max_waiting - waiting
    return (left - own + 1) // 2 if client else left

"""The queue: who waits and who runs, per expert, in order of arrival, and who overtook whom.

Knows nothing about devices, residency or policy.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable

from coterie.engine.sequence import Sequence

FEW = 2  # of so many experts, the first ones are found sooner among all that wait than expert by expert


class Queue:
    """Sequences by expert: waiting (not admitted yet) and running (they own KV blocks)."""

    def __init__(self) -> None:
        self.waiting: dict[str, dict[int, Sequence]] = {}
        self.running: dict[str, dict[int, Sequence]] = {}
        self.clients: dict[str, dict[int, Sequence]] = {}  # those of them that wait, by who asked
        self.admitted = 0
        self._order: dict[int, Sequence] = {}
        self._overtakers: list[int] = []
        self._experts: tuple[str, ...] | None = None  # kept until somebody comes, starts or goes
        self.arrived = 0  # sequences so far

    def take_number(self) -> int:
        """The next place in the order of arrival."""
        self.arrived += 1
        return self.arrived - 1

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self._experts = None
        sequence.admissions_at_arrival = self.admitted
        self.waiting.setdefault(sequence.request.expert_id, {})[sequence.number] = sequence
        self._order[sequence.number] = sequence
        if sequence.request.client:
            self.clients.setdefault(sequence.request.client, {})[sequence.number] = sequence

    def admit(self, sequence: Sequence) -> None:
        """Move a waiting sequence to the running ones and count whom it overtook."""
        self._experts = None
        self._stop_waiting(sequence)
        sequence.queue_admissions = self.admitted - sequence.admissions_at_arrival
        sequence.overtaken = self.overtaken(sequence.number)
        self.admitted += 1
        insort(self._overtakers, sequence.number)
        self._forget_past()
        self.running.setdefault(sequence.request.expert_id, {})[sequence.number] = sequence

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is."""
        self._experts = None
        if sequence.number in self._order:
            self._stop_waiting(sequence)
            self._forget_past()
        else:
            _leave(self.running, sequence.request.expert_id, sequence)

    def firsts(self, count: int) -> tuple[Sequence, ...]:
        """The first waiting sequences of the `count` experts whose first one came first, in order of arrival."""
        if count > FEW:
            each = [next(iter(waiting.values())) for waiting in self.waiting.values()]
            return tuple(sorted(each, key=lambda sequence: sequence.number)[:count])
        found: dict[str, Sequence] = {}
        wanted = min(count, len(self.waiting))
        for sequence in self._order.values():
            found.setdefault(sequence.request.expert_id, sequence)
            if len(found) == wanted:
                break
        return tuple(found.values())

    def waiting_numbers(self, numbers: Iterable[int]) -> list[Sequence]:
        """The waiting sequences of these numbers."""
        return [self._order[number] for number in numbers]

    @property
    def oldest(self) -> Sequence | None:
        """The waiting sequence that came first."""
        return next(iter(self._order.values()), None)

    def overtaken(self, number: int) -> int:
        """How many later ones were admitted before the waiting sequence of that number."""
        return len(self._overtakers) - bisect_right(self._overtakers, number)

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts that have waiting or running sequences."""
        found = self._experts
        if found is None:
            running = self.running
            found = self._experts = (*running, *[expert_id for expert_id in self.waiting if expert_id not in running])
        return found

    @property
    def num_waiting(self) -> int:
        """How many sequences wait, of all experts."""
        return len(self._order)

    def has(self, expert_id: str) -> bool:
        """Whether an expert has waiting or running sequences."""
        return expert_id in self.running or expert_id in self.waiting

    def of(self, expert_id: str) -> tuple[Sequence, ...]:
        """Every sequence of an expert, running ones first."""
        running, waiting = self.running.get(expert_id, {}), self.waiting.get(expert_id, {})
        return (*running.values(), *waiting.values())

    def running_of(self, expert_ids: Iterable[str]) -> dict[str, dict[int, Sequence]]:
        """The running sequences of those of these experts that have any, by name."""
        return {expert_id: self.running[expert_id] for expert_id in sorted(expert_ids) if expert_id in self.running}

    def next_tokens(self, expert_id: str, max_sequences: int, max_tokens: int) -> frozenset[int]:
        """The tokens that its first sequences have not computed, of whole sequences and at most so many different."""
        found: frozenset[int] = frozenset()
        for sequence in self.of(expert_id)[:max_sequences]:
            more = found.union(sequence.tokens[sequence.computed :])
            if len(more) > max_tokens:
                break
            found = more
        return found

    def all(self) -> tuple[Sequence, ...]:
        """Every sequence."""
        return tuple(sequence for expert_id in self.experts for sequence in self.of(expert_id))

    def _stop_waiting(self, sequence: Sequence) -> None:
        del self._order[sequence.number]
        _leave(self.waiting, sequence.request.expert_id, sequence)
        if sequence.request.client:
            _leave(self.clients, sequence.request.client, sequence)

    def _forget_past(self) -> None:
        """Admissions that came before the oldest waiting one overtook nobody who still waits."""
        oldest = self.oldest
        past = len(self._overtakers) if oldest is None else bisect_right(self._overtakers, oldest.number)
        del self._overtakers[:past]


def _leave(side: dict[str, dict[int, Sequence]], key: str, sequence: Sequence) -> None:
    group = side[key]
    del group[sequence.number]
    if not group:
        del side[key]

"""The queue: waiting and running requests per expert, by priority and arrival, and how often each was overtaken.

Knows nothing about devices, residency or policy.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable

from coterie.engine.sequence import Sequence

FEW = 2  # up to this many experts, a scan of all waiting requests finds the firsts sooner than one expert by expert


class Queue:
    """Sequences by expert: waiting (not admitted yet) and running (they own KV blocks).

    All are kept in the order in which they are served: by priority, then by arrival. `priorities` counts the sequences
    of each priority.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, dict[int, Sequence]] = {}
        self.running: dict[str, dict[int, Sequence]] = {}
        self.waiting_by_client: dict[str, dict[int, Sequence]] = {}
        self.admitted = 0
        self._order: dict[int, Sequence] = {}
        self._overtakers: dict[int, list[int]] = {}  # admitted numbers, sorted, by requested priority
        self._experts: tuple[str, ...] | None = None  # kept until a sequence is added, admitted or dropped
        self.arrived = 0  # sequences so far
        self.priorities: Counter[int] = Counter()

    def take_number(self) -> int:
        """The next arrival number."""
        self.arrived += 1
        return self.arrived - 1

    def add(self, sequence: Sequence) -> None:
        """Add a new waiting sequence."""
        sequence.admissions_at_arrival = self.admitted
        self.priorities[sequence.priority] += 1
        self._wait(sequence)

    def admit(self, sequence: Sequence) -> None:
        """Move a waiting sequence to the running ones, and record how many overtook it while it waited."""
        self._experts = None
        self._stop_waiting(sequence)
        if sequence.scheduled_s is None:  # else it has paused, and keeps the counts from its first admission
            sequence.queue_admissions = self.admitted - sequence.admissions_at_arrival
            sequence.overtaken = self.overtaken(sequence.number, sequence.request.priority)
        self.admitted += 1
        insort(self._overtakers.setdefault(sequence.request.priority, []), sequence.number)
        self._forget_past()
        put(self.running.setdefault(sequence.request.expert_id, {}), sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """Return a running sequence to the waiting ones, at its old place."""
        _leave(self.running, sequence.request.expert_id, sequence)
        self._wait(sequence)

    def raise_to(self, sequence: Sequence, priority: int) -> None:
        """Change a sequence's priority."""
        self._uncount(sequence)
        sequence.priority = priority
        self.priorities[priority] += 1
        request = sequence.request
        for line in (
            self._order,
            self.waiting.get(request.expert_id, {}),
            self.running.get(request.expert_id, {}),
            self.waiting_by_client.get(request.client, {}),
        ):
            if line.pop(sequence.number, None) is not None:
                put(line, sequence)

    def drop(self, sequence: Sequence) -> None:
        """Remove a sequence, waiting or running."""
        self._experts = None
        self._uncount(sequence)
        if sequence.number in self._order:
            self._stop_waiting(sequence)
            self._forget_past()
        else:
            _leave(self.running, sequence.request.expert_id, sequence)

    def firsts(self, count: int) -> tuple[Sequence, ...]:
        """The first waiting sequences of the `count` experts whose first one is oldest, in order of arrival.

        With several priorities: `count` of them for each priority that leads some expert's line, the best first.
        """
        if self.has_several_priorities:
            first = {next(iter(line.values())).priority: dict[str, Sequence]() for line in self.waiting.values()}
            for sequence in self._order.values():
                found_first = first.get(sequence.priority)
                if found_first is not None and len(found_first) < count:
                    found_first.setdefault(sequence.request.expert_id, sequence)
            return tuple([sequence for priority in sorted(first) for sequence in first[priority].values()])
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
        """The waiting sequences with these numbers."""
        return [self._order[number] for number in numbers]

    @property
    def oldest(self) -> Sequence | None:
        """The waiting sequence that is served first."""
        return next(iter(self._order.values()), None)

    @property
    def has_several_priorities(self) -> bool:
        """Whether sequences of more than one priority are present."""
        return len(self.priorities) > 1

    def is_running(self, sequence: Sequence) -> bool:
        """Whether a sequence is running."""
        return sequence.number in self.running.get(sequence.request.expert_id, ())

    def contains(self, sequence: Sequence) -> bool:
        """Whether a sequence is waiting or running."""
        return sequence.number in self._order or self.is_running(sequence)

    def overtaken(self, number: int, requested_priority: int = 0) -> int:
        """How many later sequences were admitted ahead of waiting sequence `number`, without those of better priority.

        `requested_priority`: the priority that it was requested with; those of the others are as requested, too.
        """
        found = 0
        for priority, numbers in self._overtakers.items():
            if priority >= requested_priority:
                found += len(numbers) - bisect_right(numbers, number)
        return found

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
        """How many sequences wait, over all experts."""
        return len(self._order)

    def has_work(self, expert_id: str) -> bool:
        """Whether an expert has waiting or running sequences."""
        return expert_id in self.running or expert_id in self.waiting

    def of(self, expert_id: str) -> tuple[Sequence, ...]:
        """Every sequence of an expert, running ones first."""
        running, waiting = self.running.get(expert_id, {}), self.waiting.get(expert_id, {})
        return (*running.values(), *waiting.values())

    def running_of(self, expert_ids: Iterable[str]) -> dict[str, dict[int, Sequence]]:
        """The running sequences of these experts, by name; experts without any are left out."""
        return {expert_id: self.running[expert_id] for expert_id in sorted(expert_ids) if expert_id in self.running}

    def next_tokens(self, expert_id: str, max_sequences: int, max_tokens: int) -> frozenset[int]:
        """The distinct uncomputed tokens of an expert's first sequences: whole sequences, up to `max_tokens` in all."""
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

    def _wait(self, sequence: Sequence) -> None:
        self._experts = None
        put(self.waiting.setdefault(sequence.request.expert_id, {}), sequence)
        put(self._order, sequence)
        if sequence.request.client:
            put(self.waiting_by_client.setdefault(sequence.request.client, {}), sequence)

    def _uncount(self, sequence: Sequence) -> None:
        self.priorities[sequence.priority] -= 1
        if not self.priorities[sequence.priority]:
            del self.priorities[sequence.priority]

    def _stop_waiting(self, sequence: Sequence) -> None:
        del self._order[sequence.number]
        _leave(self.waiting, sequence.request.expert_id, sequence)
        if sequence.request.client:
            _leave(self.waiting_by_client, sequence.request.client, sequence)

    def _forget_past(self) -> None:
        """Drop admissions older than the oldest waiting sequence: they overtook none that still waits."""
        if not self._order:
            self._overtakers.clear()
            return
        oldest = min(self._order) if self.has_several_priorities else next(iter(self._order))
        for priority, numbers in list(self._overtakers.items()):
            del numbers[: bisect_right(numbers, oldest)]
            if not numbers:
                del self._overtakers[priority]


def put(line: dict[int, Sequence], sequence: Sequence) -> None:
    """Insert a sequence into a line, in order; usually it belongs at the end."""
    last = next(reversed(line.values())) if line else None
    line[sequence.number] = sequence
    if last is not None and sequence.order < last.order:
        ordered = sorted(line.values(), key=lambda one: one.order)
        line.clear()
        line.update({one.number: one for one in ordered})


def _leave(side: dict[str, dict[int, Sequence]], key: str, sequence: Sequence) -> None:
    group = side[key]
    del group[sequence.number]
    if not group:
        del side[key]

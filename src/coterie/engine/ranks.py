"""Ranks: what requests of better priority take from the others, and what keeps the others from starving.

    KV blocks short   the youngest running ones of the worst priority give theirs up and wait again, at their old place
    turn_steps long   requests were passed over: the oldest one is raised to the better priority, one at a time

Knows nothing about residency, or how much work a request is.
"""

from __future__ import annotations

from collections.abc import Collection

from coterie.engine.batch import Part
from coterie.engine.batcher import Batcher
from coterie.engine.log import DecisionLog
from coterie.engine.policy import Policy
from coterie.engine.queue import Queue
from coterie.engine.reuse import Reuse
from coterie.engine.sequence import Sequence
from coterie.engine.speculate.draft import Drafts


class Ranks:
    """Makes room for requests of better priority, and raises those passed over for long.

    No effect while all requests have one priority. The policy says how many sequences of an expert share a step, and
    for how many steps (`turn_steps`) better ones run before another is raised. Methods that change something return the
    experts whose requests changed.
    """

    def __init__(
        self, queue: Queue, reuse: Reuse, batcher: Batcher, drafts: Drafts, log: DecisionLog, policy: Policy
    ) -> None:
        self._queue, self._turn_steps, self._max_batch = queue, policy.turn_steps, policy.max_batch
        self._reuse, self._batcher, self._drafts, self._log = reuse, batcher, drafts, log
        self._passed = 0
        self._raised: Sequence | None = None

    def repeats(self, steps: int) -> int:
        """`steps`, or fewer: until a request may be raised."""
        return min(steps, max(1, self._turn_steps - self._passed)) if self._queue.has_several_priorities else steps

    def make_room(self, free_blocks: int) -> list[str]:
        """Make running sequences wait again to free KV blocks for the first in line; none, if that cannot suffice."""
        paused = self._yielding(free_blocks) if self._queue.has_several_priorities else []
        for sequence in paused:
            self._reuse.pause(sequence)
            self._drafts.ended(sequence)
            self._batcher.changed(sequence.request.expert_id)
            self._queue.withdraw(sequence)
        return [sequence.request.expert_id for sequence in paused]

    def count_steps(self, ran: Collection[Part], steps: int) -> list[str]:
        """Count steps in which these ran; after enough of them, raise a passed-over sequence to their best priority."""
        if not self._queue.has_several_priorities:
            return []
        best = min([part.sequence.priority for part in ran])
        if best == max(self._queue.priorities):
            return []
        self._passed += steps
        if self._passed < self._turn_steps:
            return []
        ran_numbers, last = {part.sequence.number for part in ran}, self._raised
        # A sequence that was raised, but is behind still better ones by now, is raised again before another is.
        candidates = self._queue.all() if last is None or not self._queue.contains(last) else (last,)
        passed_over = [s for s in candidates if s.priority > best and s.number not in ran_numbers]
        if not passed_over:
            return []
        self._passed, self._raised = 0, min(passed_over, key=lambda one: one.number)
        self._queue.raise_to(self._raised, best)
        self._batcher.changed(self._raised.request.expert_id)
        self._log.add("raise", self._raised.request.request_id)
        return [self._raised.request.expert_id]

    def _yielding(self, free_blocks: int) -> list[Sequence]:
        """The sequences to pause, youngest of the worst priority first; empty if that frees too little."""
        first, running = self._queue.oldest, self._queue.running
        if first is None or first.blocks <= free_blocks:
            return []
        same_expert = running.get(first.request.expert_id, {}).values()
        if sum([sequence.priority <= first.priority for sequence in same_expert]) >= self._max_batch:  # no place
            return []
        worse = [s for sequences in running.values() for s in sequences.values() if s.priority > first.priority]
        found: list[Sequence] = []
        for sequence in sorted(worse, key=lambda one: one.order, reverse=True):
            if sequence.scored and sequence.computed:  # rows already scored cannot be scored again
                continue
            found.append(sequence)
            free_blocks += sequence.blocks
            if first.blocks <= free_blocks:
                return found
        return []

"""Reuse: a sequence starts after the KV state already computed for the same tokens, and leaves its own behind.

    admitted -> reserved -> its turn in a step: shares what exists by then, computes the rest -> ended: may be shared

Knows nothing about how shared blocks are found (prefix.py), or about schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

from coterie.engine.kv import KVPool
from coterie.engine.log import DecisionLog
from coterie.engine.metrics import Metrics, priority_class
from coterie.engine.sequence import Sequence
from coterie.engine.served import ServedExpert


class Reuse:
    """Gives sequences their KV blocks and takes them back."""

    def __init__(self, kv: KVPool, max_step_tokens: int, log: DecisionLog, metrics: Metrics) -> None:
        self._kv, self._max_step_tokens, self._log, self._metrics = kv, max_step_tokens, log, metrics

    def admit(self, expert: ServedExpert, sequence: Sequence) -> None:
        """Allocate a sequence's blocks, or only reserve them if it may share some.

        Sharing is impossible with recurrent state, which fits one length only, and with bidirectional attention, where
        a prefix's state depends on what follows.
        """
        if self._kv.reuses and sequence.request.reuse and expert.keeps_state:
            self._kv.reserve(sequence.number, sequence.blocks)
        else:
            self._kv.allocate(sequence.number, sequence.blocks)
            sequence.begun = True

    def begin(self, expert: ServedExpert, running: Mapping[int, Sequence]) -> None:
        """Choose the blocks of sequences that start in the next step: as late as possible, when most can be shared."""
        if not self._kv.reserved:  # the usual case
            return
        step: list[Sequence] = []
        new: list[Sequence] = []
        for sequence in running.values():
            if not sequence.begun:
                new.append(sequence)
                continue
            self._kv.publish(sequence.number, sequence.tokens[: sequence.computed])
            step.append(sequence)
        for sequence in new:
            before = [s for s in step if s.priority <= sequence.priority]  # worse ones take none of its tokens
            left = self._max_step_tokens - sum([len(s.tokens) - s.computed for s in before])
            if left <= 0 and len(sequence.tokens) > 1:  # single tokens come before longer prompts
                continue
            if not self._waits(expert, sequence, before):
                self._begin(expert, sequence)
                step.append(sequence)

    def _waits(self, expert: ServedExpert, sequence: Sequence, step: Seq[Sequence]) -> bool:
        """Whether a sequence should skip this step, in which others compute at least half of what it would.

        The wait is short: the step either ends the prompts in it, or has no room for another one anyway.
        """
        ahead = [other for other in step if not other.decoding and other.request.reuse]
        if not ahead:
            return False
        tokens, size = sequence.tokens, self._kv.tokens_per_block(expert.kv)
        now = after = self._kv.reusable_tokens(expert.expert_id, tokens, expert.kv)  # shareable tokens, in whole blocks
        for other in ahead:
            if other.tokens[:after] != tokens[:after]:
                continue
            last = min(len(other.tokens), len(tokens) - 1) - size
            while after <= last and other.tokens[after : after + size] == tokens[after : after + size]:
                after += size
        return after > now and 2 * (after - now) >= len(tokens) - now

    def end(self, sequence: Sequence, failed: bool) -> None:
        """Take the blocks back. After a failure, neither what they hold nor what they were given is trusted."""
        if failed:
            self._kv.forget(sequence.number)
        self._kv.free(sequence.number, () if failed else sequence.tokens[: sequence.computed])

    def pause(self, sequence: Sequence) -> None:
        """Take the blocks back from a sequence that will continue: what it computed is found again unless evicted."""
        self.end(sequence, failed=False)
        sequence.pause()
        self._metrics.by_priority[priority_class(sequence.request.priority)].pauses += 1
        self._log.add("pause", sequence.request.request_id)

    def forget(self, expert_id: str) -> None:
        """An expert's weights could not be read: distrust everything it has computed."""
        self._kv.forget_all(expert_id)

    def _begin(self, expert: ServedExpert, sequence: Sequence) -> None:
        found = self._kv.begin(sequence.number, expert.expert_id, sequence.tokens, expert.kv)
        sequence.begun = True
        sequence.computed = found
        if not sequence.paused:  # else much of it is its own earlier work
            sequence.cached_tokens = found
            self._metrics.cached_tokens += found
        if found:
            self._log.add("reuse", sequence.request.request_id, found)

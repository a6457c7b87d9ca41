"""Batches: the next batch of an expert's running sequences; those that only decode are kept from step to step.

Knows nothing about who is chosen, or about weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.engine.batch import Batch, Decoding, build, common_steps, cut
from coterie.engine.kv import KVPool
from coterie.engine.sequence import Sequence
from coterie.engine.served import ServedExpert


class Batches:
    """Makes batches of at most `max_step_tokens` tokens and `max_rows` rows of logits.

    It must be told when an expert's sequences change.
    """

    def __init__(self, kv: KVPool, max_step_tokens: int, max_rows: int) -> None:
        self._kv, self._max_step_tokens, self._max_rows = kv, max_step_tokens, max_rows
        self._decoding: dict[str, Decoding] = {}

    def changed(self, expert_id: str) -> None:
        """One of the expert's running sequences came or went."""
        self._decoding.pop(expert_id, None)

    def next(self, expert: ServedExpert, running: Mapping[int, Sequence], max_steps: int) -> Batch:
        """The next step of these sequences, or as many of `max_steps` as may run without coming back."""
        known = self._decoding.get(expert.expert_id)
        if known is not None:
            return known.batch(max_steps)
        begun = tuple([sequence for sequence in running.values() if sequence.begun])
        parts = cut(begun, self._max_step_tokens, self._max_rows)
        tables = {sequence.number: self._kv.blocks(sequence.number) for sequence in begun}
        tokens_per_block = self._kv.tokens_per_block(expert.kv)
        if len(parts) == len(running) and all(part.sequence.decoding for part in parts):
            known = self._decoding[expert.expert_id] = Decoding(parts, tables, tokens_per_block)
            return known.batch(max_steps)
        return build(parts, tables, tokens_per_block, common_steps(parts, max_steps))

"""Batches: the next batch of an expert's running sequences; those that only decode are kept from step to step.

Knows nothing about who is chosen, or about weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

from coterie.device import Device
from coterie.engine.batch import Batch, Decoding, build, common_steps, cut
from coterie.engine.fellows import Mix
from coterie.engine.guess import Guesser
from coterie.engine.kv import KVPool
from coterie.engine.policy import Policy
from coterie.engine.sequence import Sequence
from coterie.engine.served import ServedExpert


class Batches:
    """Makes batches of at most as many tokens, and rows of logits, as the policy allows.

    It must be told when an expert's sequences change.
    """

    def __init__(self, kv: KVPool, policy: Policy, device: Device) -> None:
        self._kv, self._max_step_tokens, self._max_rows = kv, policy.max_step_tokens, policy.max_batch
        self._guesser = Guesser(policy, device)
        self.renewed = self._guesser.renewed
        self._decoding: dict[str, Decoding] = {}
        self._mixed: dict[tuple[str, ...], Decoding] = {}

    def changed(self, expert_id: str) -> None:
        """One of the expert's running sequences came or went."""
        self._decoding.pop(expert_id, None)
        if self._mixed:
            self._mixed = {names: known for names, known in self._mixed.items() if expert_id not in names}

    def next(self, expert: ServedExpert, running: Mapping[int, Sequence], max_steps: int) -> Batch:
        """The next step of these sequences, or as many of `max_steps` as may run without coming back."""
        known = self._decoding.get(expert.expert_id)
        if known is not None:
            return self._decode(expert, known, max_steps)
        begun = tuple([sequence for sequence in running.values() if sequence.begun])
        parts = cut(begun, self._max_step_tokens, self._max_rows)
        tables = {sequence.number: self._kv.blocks(sequence.number) for sequence in begun}
        tokens_per_block, state_blocks = self._kv.tokens_per_block(expert.kv), self._kv.state_blocks(expert.kv)
        if len(parts) == len(running) and all(part.sequence.decoding for part in parts):
            known = Decoding(parts, tables, tokens_per_block, state_blocks=state_blocks)
            self._decoding[expert.expert_id] = known
            return self._decode(expert, known, max_steps)
        return build(parts, tables, tokens_per_block, common_steps(parts, max_steps), state_blocks=state_blocks)

    def mixed(
        self,
        fellows: Seq[ServedExpert],
        running: Mapping[str, Mapping[int, Sequence]],
        max_steps: int,
        begin: Callable[[ServedExpert, Mapping[int, Sequence]], None],
    ) -> Batch:
        """The same of fellows, whose sequences those are: the first of all that a full batch has take part.

        Those of one expert stand side by side. `begin` gives an expert's sequences their blocks.
        """
        names = tuple(running)
        for expert in fellows:
            begin(expert, running[expert.expert_id])
        known = self._mixed.get(names)
        if known is not None:
            return known.batch(max_steps)
        each = [sequence for sequences in running.values() for sequence in sequences.values()]
        chosen = sorted(each, key=lambda sequence: sequence.number)[: self._max_rows]
        begun = [sequence for sequence in chosen if sequence.begun]
        places = {name: place for place, name in enumerate(names)}
        shared_out = cut(begun, self._max_step_tokens, self._max_rows)
        parts = tuple(sorted(shared_out, key=lambda part: places[part.sequence.request.expert_id]))
        taking = [part.sequence.request.expert_id for part in parts]
        experts = tuple(dict.fromkeys(taking))
        mix = Mix(experts, tuple([experts.index(name) for name in taking]))
        tables = {sequence.number: self._kv.blocks(sequence.number) for sequence in begun}
        kv = fellows[0].kv
        tokens_per_block, state_blocks = self._kv.tokens_per_block(kv), self._kv.state_blocks(kv)
        if len(parts) == len(chosen) and all(part.sequence.decoding for part in parts):
            known = Decoding(parts, tables, tokens_per_block, mix, state_blocks)
            self._mixed = {names: known}
            return known.batch(max_steps)
        return build(parts, tables, tokens_per_block, common_steps(parts, max_steps), mix, state_blocks)

    def _decode(self, expert: ServedExpert, known: Decoding, max_steps: int) -> Batch:
        """One step with guesses, where that is better than as many as may run without."""
        guesses = self._guesser.guess(expert, known.sequences, 1 if known.one_by_one else max_steps)
        return known.batch(max_steps) if guesses is None else known.ahead(guesses)

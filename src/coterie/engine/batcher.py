"""Batcher: makes the next batch of an expert's running sequences, and reuses the layout while they only decode.

Knows nothing about scheduling decisions, or about weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace

from coterie.device import Device
from coterie.engine.batch import Batch, Decoding, Part, build, common_steps, cut, cut_whole
from coterie.engine.kv import KVPool
from coterie.engine.policy import Policy
from coterie.engine.sequence import Sequence
from coterie.engine.served import ServedExpert
from coterie.engine.speculate.draft import Drafts
from coterie.engine.speculate.guess import Guesser
from coterie.engine.variants import Mix
from coterie.engine.vectors import apart


class Batcher:
    """Makes batches within the policy's limits on tokens and rows of logits.

    It must be told when an expert's sequences change.
    """

    def __init__(self, kv: KVPool, policy: Policy, device: Device) -> None:
        self._kv, self._max_step_tokens, self._max_rows = kv, policy.max_step_tokens, policy.max_batch
        self._guesser = Guesser(policy, device)
        self._policy, self._spec, self._max_steps = policy, device.spec, dict[str, int]()
        self._gave_vectors = False
        self._decoding: dict[str, Decoding] = {}
        self._mixed: dict[tuple[str, ...], Decoding] = {}

    def renewed(self, expert_id: str) -> None:
        """An expert was replaced: drop everything derived from the old one."""
        self._max_steps.pop(expert_id, None)
        self._guesser.renewed(expert_id)
        self.changed(expert_id)

    def max_steps_of(self, expert: ServedExpert) -> int:
        """How many steps of an expert the policy allows in one run."""
        if expert.expert_id not in self._max_steps:
            self._max_steps[expert.expert_id] = self._policy.steps_of(expert.weight_bytes, self._spec)
        return self._max_steps[expert.expert_id]

    def changed(self, expert_id: str) -> None:
        """An expert gained or lost a running sequence."""
        self._decoding.pop(expert_id, None)
        if self._mixed:
            self._mixed = {names: known for names, known in self._mixed.items() if expert_id not in names}

    def next(
        self, expert: ServedExpert, running: Mapping[int, Sequence], max_steps: int, drafts: Drafts | None = None
    ) -> Batch:
        """The next step of these sequences, or as many of `max_steps` as may run in one device call.

        If there are more than fit in a batch, the first ones take part; the others, of worse priority, sit out.
        `drafts`: guesses where no other source does.
        """
        known = self._decoding.get(expert.expert_id)
        if known is None:
            made = self._first([expert], list(running.values())[: self._max_rows], max_steps)
            if isinstance(made, Batch):
                return made
            known = self._decoding[expert.expert_id] = made
        return self._decode(expert, known, max_steps, drafts)

    def mixed(
        self,
        variants: Seq[ServedExpert],
        running: Mapping[str, Mapping[int, Sequence]],
        max_steps: int,
        begin: Callable[[ServedExpert, Mapping[int, Sequence]], None],
    ) -> Batch:
        """The same for several variants: a full batch of the sequences that come first in order.

        Sequences of one expert are adjacent. `begin` gives an expert's sequences their blocks.
        """
        names = tuple(running)
        for expert in variants:
            begin(expert, running[expert.expert_id])
        known = self._mixed.get(names)
        if known is None:
            each = [sequence for sequences in running.values() for sequence in sequences.values()]
            chosen = sorted(each, key=lambda sequence: sequence.order)[: self._max_rows]
            made = self._first(variants, chosen, max_steps, names)
            if isinstance(made, Batch):
                return made
            known = made
            self._mixed = {names: known}
        return known.batch(max_steps)

    def _first(
        self, experts: Seq[ServedExpert], chosen: Seq[Sequence], max_steps: int, names: tuple[str, ...] = ()
    ) -> Batch | Decoding:
        """A new batch of these sequences; or, if all of them decode, the Decoding that makes this and later ones.

        `names`: for variants, the order in which their sequences are laid out.
        """
        drawing, wants = apart([sequence for sequence in chosen if sequence.begun])
        if wants:
            if self._vectors_are_next(wants, drawing):
                return self._vectors_of_first(experts, wants) if names else self._vectors(experts[0], wants)
            max_steps = 1
        parts, mix = cut(drawing, self._max_step_tokens, self._max_rows), None
        if names:
            parts, mix = _side_by_side(parts, names)
        tables, tokens_per_block, state_blocks = self._blocks(drawing, experts[0])
        if len(parts) == len(chosen) and all(part.sequence.decoding for part in parts):
            return Decoding(parts, tables, tokens_per_block, mix, state_blocks)
        return build(parts, tables, tokens_per_block, common_steps(parts, max_steps), mix, state_blocks)

    def _blocks(self, sequences: Seq[Sequence], expert: ServedExpert) -> tuple[dict[int, tuple[int, ...]], int, int]:
        """The sequences' KV blocks by number, tokens per block, and how many leading blocks hold recurrent state."""
        tables = {sequence.number: self._kv.blocks(sequence.number) for sequence in sequences}
        return tables, self._kv.tokens_per_block(expert.kv), self._kv.state_blocks(expert.kv)

    def _vectors_are_next(self, wants: Seq[Sequence], drawing: Seq[Sequence]) -> bool:
        """Whether the next step computes vectors: the better priority decides; at equal ones the two alternate."""
        best, other = ([sequence.priority for sequence in sequences] for sequences in (wants, drawing))
        differs = bool(other) and min(best) != min(other)
        self._gave_vectors = min(best) < min(other) if differs else not (self._gave_vectors and bool(other))
        return self._gave_vectors

    def _vectors_of_first(self, variants: Seq[ServedExpert], wants: Seq[Sequence]) -> Batch:
        """The next step for the expert of the first of these sequences: a step of vectors serves a single expert."""
        name = wants[0].request.expert_id
        (expert,) = [variant for variant in variants if variant.expert_id == name]
        found = self._vectors(expert, [sequence for sequence in wants if sequence.request.expert_id == name])
        return replace(found, mix=Mix((name,), (0,) * len(found.parts)))

    def _vectors(self, expert: ServedExpert, wants: Seq[Sequence]) -> Batch:
        """The next step of sequences that want vectors; whole texts where attention is bidirectional."""
        if expert.exe.program.bidirectional:
            parts = cut_whole(wants, self._max_step_tokens)
        else:
            parts = cut(wants, self._max_step_tokens, self._max_step_tokens + len(wants))
        tables, tokens_per_block, state_blocks = self._blocks(wants, expert)
        return replace(build(parts, tables, tokens_per_block, state_blocks=state_blocks), gives_vectors=True)

    def _decode(self, expert: ServedExpert, known: Decoding, max_steps: int, drafts: Drafts | None) -> Batch:
        """One step with guesses where these pay, else as many of `max_steps` as may run in one device call."""
        steps = 1 if known.one_by_one else max_steps
        guesses = self._guesser.guess(expert, known.sequences, steps)
        if guesses is not None:
            return known.ahead(guesses)
        guesses = None if drafts is None else drafts.guess(expert, known.sequences, steps)
        return known.batch(max_steps) if guesses is None else replace(known.ahead(guesses), drafted=True)


def _side_by_side(parts: Seq[Part], names: tuple[str, ...]) -> tuple[tuple[Part, ...], Mix]:
    """The parts ordered by expert, in the order of `names`, and which expert each belongs to."""
    ordered = sorted(parts, key=lambda part: names.index(part.sequence.request.expert_id))
    of_each = [part.sequence.request.expert_id for part in ordered]
    experts = tuple(dict.fromkeys(of_each))
    return tuple(ordered), Mix(experts, tuple([experts.index(name) for name in of_each]))

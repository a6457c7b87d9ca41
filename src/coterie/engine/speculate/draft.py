"""Speculative decoding with a draft expert: a small one drafts for a large one with its vocabulary, where that pays.

    sequence   p p p p p a a a            its draft: the same tokens, in KV blocks of the small expert's own
    draft      p p p p p a a a g1 g2 g3   one step reads what it has not seen and draws g1, one run draws the others

Drafts are verified like other guesses (guess.py), so they change no token. Drafting never delays other work: it happens
only while its sequences are the only ones, gives its KV blocks back when others lack them, and loads the draft expert
only where that evicts nothing. Knows nothing about clocks, or about what the tokens mean: prices are in bytes read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from coterie.core.errors import CapacityError
from coterie.device import Device
from coterie.engine.batch import build, cut
from coterie.engine.kv import KVPool
from coterie.engine.loads import Loads
from coterie.engine.log import DecisionLog
from coterie.engine.policy import Policy
from coterie.engine.queue import Queue
from coterie.engine.request import Request
from coterie.engine.runner import Runner
from coterie.engine.sequence import Sequence
from coterie.engine.served import ServedExpert
from coterie.engine.speculate.price import BETWEEN_RUNS_BYTES, MIN_GAIN, Price, best_count
from coterie.engine.view import ABSENT, READY, Fetch

MAX_DRAFTED = 7  # guesses per sequence and step; further ones are rarely right
CHUNK_TOKENS = 128  # prompt tokens per draft step: bounds how long the others' next token waits for it
EXPECTED = 4  # a draft reads its prompt only if it pays within this many times the answer's length so far
# RIGHT: prior acceptance rate, with the weight of COUNTED guesses. A 0.5B model for a 1.5B one: 0.6 to 0.7 in prose,
# 0.9 in code. Beyond REMEMBERED guesses, old ones are decayed.
RIGHT, COUNTED, REMEMBERED = 0.8, 8.0, 64.0
_LOGGER = logging.getLogger(__name__)


@dataclass(slots=True)
class AcceptanceRate:
    """Acceptance rate: how often a guess was right, given that all guesses before it were."""

    right: float = COUNTED * RIGHT
    tries: float = COUNTED

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.right / self.tries

    def count(self, right: int, tries: int) -> None:
        """Count `tries` more guesses, `right` of them accepted."""
        self.right, self.tries = self.right + right, self.tries + tries
        if self.tries > REMEMBERED:
            self.right, self.tries = self.right / 2, self.tries / 2

    def for_new_answer(self) -> AcceptanceRate:
        """The estimate for a new answer: this rate, but at least RIGHT, with the weight of COUNTED guesses."""
        return AcceptanceRate(COUNTED * max(self.value, RIGHT))


@dataclass(slots=True)
class Draft:
    """A draft of a sequence: `own` agrees up to `agreed`; its `guessed` tokens from `base` on await verification."""

    expert_id: str
    own: Sequence
    rate: AcceptanceRate
    agreed: int = 0
    base: int = 0
    guessed: int = 0

    def follow(self, tokens: Seq[int]) -> tuple[int, int]:
        """Adopt the sequence's tokens; returns how many of the last guesses were right, and how many are decided."""
        mine, known = self.own.tokens, min(len(tokens), len(self.own.tokens))
        while self.agreed < known and mine[self.agreed] == tokens[self.agreed]:
            self.agreed += 1
        right, tries = 0, 0
        if self.guessed and len(tokens) > self.base:
            right = min(self.agreed - self.base, self.guessed)
            tries = right + (right < self.guessed)
            self.rate.count(right, tries)
        self.own.computed = min(self.own.computed, self.agreed, len(tokens) - 1)
        mine[self.agreed :] = tokens[self.agreed :]
        self.agreed, self.guessed = len(tokens), 0
        return right, tries


@dataclass(slots=True)
class _Pair:
    """An expert and its draft expert: the prices of their steps, and the acceptance rate."""

    price: Price
    drafting: Price
    rate: AcceptanceRate = field(default_factory=AcceptanceRate)


class Drafts:
    """Drafts by the small experts that served ones name. Must be told of ended sequences and changed experts."""

    def __init__(
        self,
        device: Device,
        kv: KVPool,
        loads: Loads,
        runner: Runner,
        experts: Mapping[str, ServedExpert],
        policy: Policy,
        queue: Queue,
        log: DecisionLog,
    ) -> None:
        self._device, self._kv, self._loads, self._runner = device, kv, loads, runner
        self._experts, self._policy, self._queue = experts, policy, queue
        self._log, self._made_up = log, device.synthetic()
        self._of, self._pairs = dict[int, Draft](), dict[str, _Pair]()  # by sequence number; by expert
        # Experts that must be loaded again before they draft; (what, expert) pairs whose lack of memory has been
        # logged.
        self._failed, self._told = set[str](), set[tuple[str, str]]()
        self._no_room_at: dict[str, int] = {}  # experts that found no room -> Loads.residence_version at the time
        self.lacks: dict[tuple[str, str], CapacityError] = {}  # (what, expert) -> the memory that it lacks now

    # ---- notifications

    def ended(self, sequence: Sequence) -> None:
        """A sequence has ended: publish what its draft has computed."""
        draft = self._of.pop(sequence.number, None) if self._of else None
        if draft is not None:
            self._kv.free(draft.own.number, draft.own.tokens[: min(draft.own.computed, draft.agreed)])

    def yield_blocks(self) -> bool:
        """Give all blocks back if a waiting request lacks some; returns whether it did."""
        if not self._of or not self._queue.num_waiting:
            return False
        firsts = [next(iter(waiting.values())) for waiting in self._queue.waiting.values()]
        if all(sequence.blocks <= self._kv.free_blocks for sequence in firsts):
            return False
        self._drop(tuple(self._of))
        return True

    def renewed(self, expert_id: str) -> None:
        """An expert was replaced; its sequences may begin again."""
        self._failed.discard(expert_id)
        self._pairs = {name: pair for name, pair in self._pairs.items() if expert_id not in (name, self._named(name))}
        self._drop_all(expert_id)

    def failed(self, expert_id: str) -> None:
        """An expert's load or step failed: do not use it for drafting until it is loaded again."""
        self._failed.add(expert_id)
        self._drop_all(expert_id)

    def loaded(self, expert_id: str) -> None:
        """An expert was loaded successfully, for drafting or for its own requests."""
        self._failed.discard(expert_id)

    # ---- guessing

    def ready(self, expert: ServedExpert, start_fetch: Callable[[Fetch], bool]) -> bool:
        """Whether the draft expert is resident, for an expert that runs alone.

        If it is absent, it is fetched where `start_fetch` finds unused room.
        """
        small = self._drafter(expert)
        if small is None:
            return False
        name, residence = small.expert_id, self._loads.residence(small.expert_id)
        if residence is ABSENT and self._no_room_at.get(name) != self._loads.residence_version:
            if not start_fetch(Fetch(name, self._loads.resident)):
                lack = self._loads.shortage_error(name, f"{expert.expert_id}: draft")
                if lack is not None:
                    self._lacking("weights", name, lack)
            self._no_room_at[name] = self._loads.residence_version
        elif residence is READY:
            self.lacks.pop(("weights", name), None)
        return residence is READY

    def guess(self, expert: ServedExpert, sequences: Seq[Sequence], steps: int) -> list[tuple[int, ...]] | None:
        """Guesses for each of these sequences, which all decode; None if `steps` steps without guesses are better.

        The draft expert must be `ready`. Until it has read all tokens of these sequences, it only reads on.
        """
        small = self._experts[expert.draft]
        if any(sequence.mask is not None or not _fits(sequence, small, expert) for sequence in sequences):
            return None
        pair = self._pair(expert, small)
        drafts = [self._of.get(sequence.number) for sequence in sequences]
        for sequence, draft in zip(sequences, drafts, strict=True):
            if draft is not None:
                pair.rate.count(*draft.follow(sequence.tokens))
        count = self._worth(small, pair, sequences, drafts, steps)
        begun = [self._begin(small, pair, s) for s in sequences] if count else []
        if not all(begun) or not begun:
            return None
        found = [draft for draft in begun if draft is not None]
        for draft, sequence in zip(found, sequences, strict=True):
            if small.vocab_size >= expert.vocab_size:  # else penalties may name tokens outside its vocabulary
                draft.own.draw_as(sequence)
        if not self._run(small, found, count):
            return None
        guesses = [_given(draft, sequence, count, expert) for draft, sequence in zip(found, sequences, strict=True)]
        return guesses if any(guesses) else None

    def _named(self, expert_id: str) -> str:
        return self._experts[expert_id].draft if expert_id in self._experts else ""

    def _drafter(self, expert: ServedExpert) -> ServedExpert | None:
        """The expert that may draft for this one, if any."""
        small = self._experts.get(expert.draft) if expert.draft else None
        if small is None or self._made_up or small.expert_id in self._failed:
            return None
        if expert.kv.recurrent or small.kv.recurrent or not small.exe.program.samples_tokens:
            return None
        return small if self._policy.guesses_of(expert.weight_bytes, self._device.spec) else None

    def _pair(self, expert: ServedExpert, small: ServedExpert) -> _Pair:
        pair = self._pairs.get(expert.expert_id)
        if pair is None:
            # The price per row decides here, so use measured figures; lookups, whose chances are estimates, use a
            # cautious one.
            balance = self._policy.balance_of(self._device.spec, of_kernels=True)
            pair = self._pairs[expert.expert_id] = _Pair(Price.of(expert, balance), Price.of(small, balance))
        return pair

    def _worth(
        self,
        small: ServedExpert,
        pair: _Pair,
        sequences: Seq[Sequence],
        drafts: Seq[Draft | None],
        steps: int,
    ) -> int:
        """How many guesses per sequence to draft; 0 if `steps` steps without any are better.

        A draft with most of its prompt unread starts only if the answer is long enough for the reading to pay.
        """
        max_count = min(
            MAX_DRAFTED, self._policy.max_batch // len(sequences) - 1, *[s.tokens_left - 1 for s in sequences]
        )
        if self._policy.max_guesses is not None:
            max_count = min(max_count, self._policy.max_guesses)
        rates = [(pair.rate.for_new_answer() if draft is None else draft.rate).value for draft in drafts]
        plain = pair.price.step(sequences) + BETWEEN_RUNS_BYTES / steps
        count, gain = best_count(pair.price, pair.drafting, sequences, rates, max_count, plain)
        if not count:
            return 0
        unread = sum([self._unread(small, s, draft) for s, draft in zip(sequences, drafts, strict=True)])
        if unread <= len(sequences) * (MAX_DRAFTED + 1):  # no more than a drafting step reads anyway
            return count if gain >= 1 + (MIN_GAIN - 1) * (None in drafts) else 0
        drawn = [len(s.tokens) - len(s.request.prompt_ids) for s in sequences]
        to_come = sum([min(EXPECTED * d, s.tokens_left) for s, d in zip(sequences, drawn, strict=True)])
        saved = plain * (1 - 1 / gain) / len(sequences)  # per token to come
        return count if gain >= MIN_GAIN and unread * pair.drafting.row <= to_come * saved else 0

    def _unread(self, small: ServedExpert, sequence: Sequence, draft: Draft | None) -> int:
        """How many of a sequence's tokens, without the newest, the small expert has yet to read."""
        if draft is not None:
            return len(sequence.tokens) - 1 - draft.own.computed
        shares = self._kv.reuses and sequence.request.reuse and small.keeps_state
        known = self._kv.reusable_tokens(small.expert_id, sequence.tokens, small.kv) if shares else 0
        return len(sequence.tokens) - 1 - known

    def _begin(self, small: ServedExpert, pair: _Pair, sequence: Sequence) -> Draft | None:
        """A sequence's draft; None if there are no blocks for it."""
        draft = self._of.get(sequence.number)
        if draft is not None:
            return draft
        asked, tokens, kv = sequence.request, sequence.tokens, self._kv
        left = sequence.max_length - len(tokens)
        request = Request(asked.request_id, small.expert_id, tuple(tokens), left, asked.sampling)
        own = Sequence(request, small.max_context, 0.0)
        own.number, own.begun = ~sequence.number, True
        blocks = kv.blocks_for(own.kv_tokens, small.kv)
        if self._queue.num_waiting:
            return None
        if blocks > kv.free_blocks:
            self._lacking(
                "KV", small.expert_id, kv.shortage_error(blocks, small.expert_id, f"{asked.expert_id}: draft")
            )
            return None
        self.lacks.pop(("KV", small.expert_id), None)
        if kv.reuses and asked.reuse and small.keeps_state:
            kv.reserve(own.number, blocks)
            own.computed = kv.begin(own.number, small.expert_id, tokens, small.kv)
        else:
            kv.allocate(own.number, blocks)
        draft = self._of[sequence.number] = Draft(asked.expert_id, own, pair.rate.for_new_answer(), len(tokens))
        return draft

    def _lacking(self, what: str, name: str, lack: CapacityError) -> None:
        """Record that drafting lacks memory; logged once."""
        self.lacks[what, name] = lack
        if (what, name) not in self._told:
            self._told.add((what, name))
            _LOGGER.warning("nothing is drafted: %s", lack)

    def _drop_all(self, expert_id: str) -> None:
        """Drop an expert's drafts, drafts for it, and what was recorded about the memory it lacked."""
        self.lacks = {about: lack for about, lack in self.lacks.items() if about[1] != expert_id}
        self._drop([n for n, draft in self._of.items() if expert_id in (draft.expert_id, draft.own.request.expert_id)])

    def _drop(self, numbers: Seq[int]) -> None:
        for number in numbers:
            self._kv.free(self._of.pop(number).own.number)

    # ---- running

    def _run(self, small: ServedExpert, drafts: Seq[Draft], count: int) -> bool:
        """Draft `count` tokens for each; False if a prompt is not fully read yet, or a step failed."""
        own = [draft.own for draft in drafts]
        # Decoding ones come first, with a token each; twice as many tokens ensure progress for the others.
        tokens = min(max(CHUNK_TOKENS, 2 * len(own)), self._policy.max_step_tokens)
        if not self._step(small, own, tokens, 1) or not all(sequence.decoding for sequence in own):
            return False
        return count == 1 or self._step(small, own, len(own), count - 1)

    def _step(self, small: ServedExpert, own: Seq[Sequence], tokens: int, steps: int) -> bool:
        parts = cut(own, tokens, self._policy.max_batch)
        tables = {sequence.number: self._kv.blocks(sequence.number) for sequence in own}
        batch = build(parts, tables, self._kv.tokens_per_block(small.kv), steps)
        name, sizes = small.expert_id, batch.rows.sizes
        event = self._runner.run([small], [self._loads.residency(name)], batch, what="draft")
        self._log.add_steps(steps, ("draft", name, sizes.T, len(batch.rows.rows_R)))
        if self._device.failure(event) is not None:
            self.failed(name)
            return False
        drawn = self._device.tokens(event)
        for part in parts:
            part.sequence.computed += part.count + len(drawn) - 1
        for row, sequence in enumerate(batch.sampled):
            sequence.tokens += drawn[:, row].tolist()
        return len(drawn) == steps


def _fits(sequence: Sequence, small: ServedExpert, expert: ServedExpert) -> bool:
    """Whether the small expert can read a sequence's tokens, and continue it."""
    tokens = sequence.tokens
    if sequence.tokens_left < 2 or len(tokens) + MAX_DRAFTED >= small.max_context:
        return False
    return small.vocab_size >= expert.vocab_size or max(tokens) < small.vocab_size


def _given(draft: Draft, sequence: Sequence, count: int, expert: ServedExpert) -> tuple[int, ...]:
    """A draft's guesses, up to the first that is not in the expert's vocabulary."""
    base, drawn = len(sequence.tokens), draft.own.tokens[len(sequence.tokens) :][:count]
    beyond = next((place for place, token in enumerate(drawn) if not 0 <= token < expert.vocab_size), len(drawn))
    draft.base, draft.guessed = base, beyond
    return tuple(drawn[:beyond])

"""Builds the rows of a step from the chosen sequences: decodes first, then prefill chunks, within a token budget.

    sequence   a: decoding    b: decoding    c: prompt of 9, 4 computed        budget 6 tokens
    tokens_T   a7             b3             c4 c5 c6 c7                       c's last token does not fit:
    rows_R     ^              ^                                                c is not sampled in this step

Knows nothing about experts, scheduling or devices, except the layout of Rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

from coterie.core.values import value
from coterie.device import Rows, Sampling
from coterie.engine.sequence import Sequence
from coterie.engine.variants import Mix

GREEDY = Sampling()  # for rows whose drawn token is discarded


@value
class Part:
    """A sequence's share of a step: `count` tokens, starting at its first uncomputed one."""

    sequence: Sequence
    count: int


@value
class Scored:
    """Rows whose logits score prompt tokens: `count` rows of rows_R from `first_row`, at positions from `position`."""

    sequence: Sequence
    first_row: int
    position: int
    count: int


@value
class Guessed:
    """Guesses for the sequence sampled in `row`; what is drawn after them is in the rows from `first_row` on."""

    sequence: Sequence
    row: int
    first_row: int
    tokens: tuple[int, ...]


@value
class Batch:
    """The parts of a step (or of `steps` equal ones) and their rows.

    owners: the sequences' numbers, under which they own KV blocks.
    sampled: the sequences that get a token, in the order of rows_R; chosen: those rows whose token is chosen on the
        host.
    scored, guessed: the rows after these, of scored prompts and of guessed tokens.
    mix: which expert each part belongs to, if there are several.
    gives_vectors: nothing is drawn; `sampled` and `scored` are rows of vectors.
    drafted: the guesses come from a draft expert.
    """

    parts: tuple[Part, ...]
    owners: tuple[int, ...]
    rows: Rows
    sampled: tuple[Sequence, ...]
    steps: int = 1
    chosen: tuple[int, ...] = ()
    scored: tuple[Scored, ...] = ()
    mix: Mix | None = None
    guessed: tuple[Guessed, ...] = ()
    gives_vectors: bool = False
    drafted: bool = False

    @property
    def what(self) -> str:
        """A short description of the parts."""
        if self.gives_vectors:
            return f"vectors {len(self.parts)}"
        decoding = sum(part.sequence.decoding for part in self.parts)
        counts = {"prefill": len(self.parts) - decoding, "decode": decoding}
        return ", ".join(f"{what} {count}" for what, count in counts.items() if count)


def cut(sequences: Seq[Sequence], max_tokens: int, max_rows: int) -> tuple[Part, ...]:
    """Share out `max_tokens` tokens: one to each decoding sequence, the rest to prompts, first come, first served.

    Only prompts of the best priority are served, so that their first tokens wait for no other prompt. Each
    sequence gets one of the `max_rows` rows of logits; the others go to prompts that need a row for each token.
    """
    parts: list[Part] = []
    left, rows = max_tokens, max(max_rows - len(sequences), 0)
    order = sorted(sequences, key=lambda s: (len(s.tokens) - s.computed != 1, s.order)) if sequences[1:] else sequences
    best: int | None = None  # the best priority among the prompts
    for sequence in order:
        if not sequence.decoding:
            best = sequence.priority if best is None else best
            if sequence.priority != best:
                break
        count = min(len(sequence.tokens) - sequence.computed, left)
        if sequence.scored > sequence.computed:
            count = min(count, 1 + rows)
            rows -= max(count - 1, 0)
        if count > 0:
            parts.append(Part(sequence, count))
            left -= count
    return tuple(parts)


def cut_whole(sequences: Seq[Sequence], max_tokens: int) -> tuple[Part, ...]:
    """Whole prompts, first come, first served, of `max_tokens` tokens together; the first one whatever its length."""
    parts: list[Part] = []
    left = max_tokens
    for sequence in sorted(sequences, key=lambda s: s.order):
        count = len(sequence.tokens) - sequence.computed
        if count <= left or not parts:
            parts.append(Part(sequence, count))
            left -= count
    return tuple(parts)


def common_steps(parts: Seq[Part], max_steps: int) -> int:
    """How many steps may run in one device call: only if all parts decode, and only an end token can end one early."""
    steps = max_steps
    for part in parts:
        if not part.sequence.decoding or part.sequence.steps_alone:
            return 1
        steps = min(steps, part.sequence.tokens_left)
    return steps


def build(
    parts: tuple[Part, ...],
    tables: Mapping[int, tuple[int, ...]],
    tokens_per_block: int,
    steps: int = 1,
    mix: Mix | None = None,
    state_blocks: int = 0,
) -> Batch:
    """Lay the parts out as Rows. `tables`: each sequence number's KV blocks, enough for `steps` steps.

    The first `state_blocks` of them hold recurrent state, no tokens.
    """
    lengths = [part.sequence.computed + part.count for part in parts]
    columns = state_blocks - (-(max(lengths) + steps - 1) // tokens_per_block)
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    block_tables: list[Seq[int]] = []
    sampled: list[int] = []
    drawing: list[Sequence] = []
    looked_at: list[int] = []
    scored: list[Scored] = []
    for row, part in enumerate(parts):
        sequence, end = part.sequence, lengths[row]
        start = sequence.computed
        block_tables.append(_row(tables[sequence.number], columns))
        tokens += sequence.tokens[start:end]
        positions += range(start, end)
        rows += [row] * part.count
        if end == len(sequence.tokens):
            sampled.append(len(tokens) - 1)
            drawing.append(sequence)
        count = min(end, sequence.scored) - start
        if count > 0:
            scored.append(Scored(sequence, len(looked_at), start, count))
            looked_at += range(len(tokens) - part.count, len(tokens) - part.count + count)
    sampling, end_ids = tuple([s.sampling for s in drawing]), tuple([s.end_ids for s in drawing])
    sampling, end_ids = sampling + (GREEDY,) * len(looked_at), end_ids + ((),) * len(looked_at)
    rows_R, types_T = sampled + looked_at, _types_of(parts)
    made = Rows(tokens, positions, rows, block_tables, lengths, rows_R, sampling, end_ids, types_T)
    owners = tuple([part.sequence.number for part in parts])
    scored_after = [Scored(s.sequence, len(sampled) + s.first_row, s.position, s.count) for s in scored]
    return Batch(parts, owners, made, tuple(drawing), steps, chosen_of(drawing), tuple(scored_after), mix)


def _types_of(parts: Seq[Part]) -> tuple[int, ...]:
    """The type id of each token (which text of a pair it belongs to); empty if no part has a second text."""
    if not any(part.sequence.request.types for part in parts):
        return ()
    of = [(part.sequence.request.types, part.sequence.computed, part.count) for part in parts]
    return tuple([kind for types, start, count in of for kind in types[start : start + count] or (0,) * count])


def chosen_of(sampled: Seq[Sequence]) -> tuple[int, ...]:
    """The rows whose token is chosen on the host."""
    return tuple([row for row, sequence in enumerate(sampled) if sequence.chooser is not None])


class Decoding:
    """A fixed set of sequences that all decode: each step takes the newest token of each.

    Gives the same batches as `cut`, `common_steps` and `build`, but keeps what does not change from step to step.
    """

    def __init__(
        self,
        parts: tuple[Part, ...],
        tables: Mapping[int, tuple[int, ...]],
        tokens_per_block: int,
        mix: Mix | None = None,
        state_blocks: int = 0,
    ) -> None:
        self._mix = mix
        self._parts, self.sequences = parts, tuple([part.sequence for part in parts])
        self._owners = tuple([sequence.number for sequence in self.sequences])
        self._owned = [tables[number] for number in self._owners]
        self._tokens_per_block, self._state_blocks = tokens_per_block, state_blocks
        self.one_by_one = any(sequence.steps_alone for sequence in self.sequences)
        self._chosen = chosen_of(self.sequences)
        self._rows = list(range(len(parts)))
        self._changing = any(sequence.history is not None for sequence in self.sequences)
        self._sampling = tuple([sequence.sampling for sequence in self.sequences])
        self._end_ids = tuple([sequence.end_ids for sequence in self.sequences])
        self._columns, self._tables = 0, list[Seq[int]]()

    def batch(self, max_steps: int) -> Batch:
        """The next step, or as many of `max_steps` as may run in one device call."""
        sequences, steps, longest = self.sequences, max_steps, 0
        tokens: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        for sequence in sequences:  # one loop, for speed: batches are small, and one is made for every run
            known, position = sequence.tokens, sequence.computed
            length = position + 1
            tokens.append(known[-1])
            positions.append(position)
            lengths.append(length)
            left = sequence.max_length - len(known)
            steps = min(steps, left)
            longest = max(longest, length)
        if self.one_by_one:
            steps = 1
        tables, each = self._tables_up_to(longest + steps - 1), self._rows
        rows = Rows(tokens, positions, each, tables, lengths, each, self._settings(), self._end_ids)
        return Batch(self._parts, self._owners, rows, sequences, steps, self._chosen, (), self._mix)

    def ahead(self, guesses: Seq[tuple[int, ...]]) -> Batch:
        """The next step, with these guesses appended to each sequence's newest token; rows of guesses come last."""
        tokens: list[int] = []
        positions: list[int] = []
        sequence_T: list[int] = []
        lengths: list[int] = []
        newest: list[int] = []
        guess_rows: list[int] = []
        sampling, guessed = list(self._settings()), list[Guessed]()
        for row, (sequence, guess) in enumerate(zip(self.sequences, guesses, strict=True)):
            first, length = len(tokens), sequence.computed + 1 + len(guess)
            newest.append(first)
            tokens += (sequence.tokens[-1], *guess)
            positions += range(sequence.computed, length)
            lengths.append(length)
            sequence_T += [row] * (1 + len(guess))
            if guess:
                guessed.append(Guessed(sequence, row, len(guesses) + len(guess_rows), guess))
                guess_rows += range(first + 1, len(tokens))
                sampling += [sequence.sampling_after(guess[: place + 1]) for place in range(len(guess))]
        tables, end_ids = self._tables_up_to(max(lengths)), self._end_ids + ((),) * len(guess_rows)
        rows = Rows(tokens, positions, sequence_T, tables, lengths, newest + guess_rows, tuple(sampling), end_ids)
        return Batch(self._parts, self._owners, rows, self.sequences, 1, self._chosen, (), self._mix, tuple(guessed))

    def _settings(self) -> tuple[Sampling, ...]:
        """The current sampling settings of each sequence."""
        if self._changing:
            self._sampling = tuple([sequence.sampling for sequence in self.sequences])
        return self._sampling

    def _tables_up_to(self, length: int) -> Seq[Seq[int]]:
        """Block tables with room for this many positions."""
        columns = self._state_blocks - (-length // self._tokens_per_block)
        if columns != self._columns:
            self._columns, self._tables = columns, [_row(blocks, columns) for blocks in self._owned]
        return self._tables


def _row(blocks: tuple[int, ...], columns: int) -> Seq[int]:
    """A sequence's row of the block table, zero-padded."""
    used = blocks[:columns]
    return used if len(used) == columns else [*used, *[0] * (columns - len(used))]

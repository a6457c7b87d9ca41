"""Builds the rows of a step from the chosen sequences: decodes first, then prefill chunks, within a token budget.

    sequence   a: decoding    b: decoding    c: prompt of 9, 4 computed        budget 6 tokens
    tokens_T   a7             b3             c4 c5 c6 c7                       c's last token does not fit:
    rows_R     ^              ^                                                c is not sampled in this step

Knows nothing about experts, scheduling or devices, except the form of Rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

from coterie.core.values import value
from coterie.device import Rows
from coterie.engine.sequence import Sequence


@value
class Part:
    """A sequence's share of a step: `count` tokens from `start` on; `sampled` when they reach its newest token."""

    sequence: Sequence
    start: int
    count: int

    @property
    def sampled(self) -> bool:
        """True when the logits of the last token are wanted."""
        return self.start + self.count == len(self.sequence.tokens)


@value
class Batch:
    """The parts of a step (or of `steps` equal ones) and their rows; `sampled` get a token, in the order of rows_R."""

    parts: tuple[Part, ...]
    rows: Rows
    sampled: tuple[Sequence, ...]
    steps: int = 1

    @property
    def what(self) -> str:
        """What the parts do, in words."""
        decoding = sum(part.sequence.decoding for part in self.parts)
        counts = {"prefill": len(self.parts) - decoding, "decode": decoding}
        return ", ".join(f"{what} {count}" for what, count in counts.items() if count)


def cut(sequences: Seq[Sequence], max_tokens: int) -> tuple[Part, ...]:
    """Share `max_tokens` tokens out: one to each decoding sequence, then prompts first come, first served."""
    parts: list[Part] = []
    left = max_tokens
    order = sorted(sequences, key=lambda s: (len(s.tokens) - s.computed != 1, s.number)) if sequences[1:] else sequences
    for sequence in order:
        count = min(len(sequence.tokens) - sequence.computed, left)
        if count > 0:
            parts.append(Part(sequence, sequence.computed, count))
            left -= count
    return tuple(parts)


def common_steps(parts: Seq[Part], max_steps: int) -> int:
    """How many steps may run without coming back: all parts decode, none can end in between but by an end token."""
    steps = max_steps
    for part in parts:
        if not part.sequence.decoding or part.sequence.request.stop:
            return 1
        steps = min(steps, part.sequence.tokens_left)
    return steps


def build(
    parts: tuple[Part, ...], tables: Mapping[int, tuple[int, ...]], tokens_per_block: int, steps: int = 1
) -> Batch:
    """Lay the parts out as Rows. `tables` maps sequence numbers to their KV blocks, enough for `steps` steps."""
    lengths = [part.start + part.count for part in parts]
    columns = -(-(max(lengths) + steps - 1) // tokens_per_block)
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    block_tables: list[Seq[int]] = []
    sampled: list[int] = []
    drawing: list[Sequence] = []
    for row, part in enumerate(parts):
        sequence, end = part.sequence, part.start + part.count
        used = tables[sequence.number][:columns]
        block_tables.append(used if len(used) == columns else [*used, *[0] * (columns - len(used))])
        tokens += sequence.tokens[part.start : end]
        positions += range(part.start, end)
        rows += [row] * part.count
        if end == len(sequence.tokens):
            sampled.append(len(tokens) - 1)
            drawing.append(sequence)
    sampling, end_ids = tuple([s.sampling for s in drawing]), tuple([s.end_ids for s in drawing])
    made = Rows(tokens, positions, rows, block_tables, lengths, sampled, sampling, end_ids)
    return Batch(parts, made, tuple(drawing), steps)

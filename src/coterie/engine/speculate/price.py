"""What guesses cost and give: steps as bytes that could be read meanwhile, tokens by how likely they are.

Knows nothing about where guesses come from, or about clocks.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from coterie.core.shapes import Sizes
from coterie.engine.policy import FEW_ROWS, Balance
from coterie.engine.sequence import Sequence
from coterie.engine.served import ServedExpert
from coterie.graph.cost import program_cost

# What lies between two runs, in the engine and the device, as bytes that could be read: some 0.25 ms of 35 GB/s.
BETWEEN_RUNS_BYTES = 2**23
MIN_GAIN = 1.1  # tokens for their price, over those of steps without guesses: the chances are estimates


@dataclass(frozen=True, slots=True)
class Price:
    """What a step of an expert takes, as bytes read meanwhile: of the first row, of each other one (`few`: of one that
    makes FEW_ROWS or less), for each position that a row sees, and of the KV state of each position, which is read
    once for all rows of a sequence.
    """

    first: float
    row: float
    few: float
    seen: float
    kv: float

    @classmethod
    def of(cls, expert: ServedExpert, balance: Balance) -> Price:
        """By what the program computes and reads."""
        program, of_few, of_more = expert.exe.program, balance.few, balance.more
        one, two, far = (program_cost(program, s) for s in (_sizes(1, 1), _sizes(2, 3), _sizes(1, 1025)))
        first = one.weight_bytes + one.flops / of_more
        read, flops = two.weight_bytes - one.weight_bytes, two.flops - one.flops
        seen = (far.flops - one.flops) / 1024 / of_more
        return cls(first, read + flops / of_more, read + flops / of_few, seen, expert.kv.bytes_per_token)

    def step(self, sequences: Seq[Sequence]) -> float:
        """Of a step that draws one token for each of them."""
        context, few = sum([len(sequence.tokens) for sequence in sequences]), min(len(sequences), FEW_ROWS)
        rows = (few - 1) * self.few + (len(sequences) - few) * self.row
        return self.first + rows + context * (self.seen + self.kv)

    def guess(self, sequence: Sequence, rows: int) -> float:
        """Of one guess more for this sequence, which makes so many rows of the step."""
        return (self.few if rows <= FEW_ROWS else self.row) + len(sequence.tokens) * self.seen


def _sizes(rows: int, pairs: int) -> Sizes:
    return Sizes(T=rows, B=1, R=rows, context_tokens=rows, pairs=pairs)


def best_count(
    price: Price, drafting: Price, sequences: Seq[Sequence], shares: Seq[float], most: int, plain: float
) -> tuple[int, float]:
    """How many drafted guesses of each sequence, up to `most`, give most tokens for their price; and their gain.

    0 and 1.0 where none are better. `price`: of the expert whose tokens they are; `drafting`: of the one that drafts,
    which has read all prompts. `shares`: how often a sequence's guess is right; `plain`: a step without guesses.
    """
    best, found, tokens, chances = len(sequences) / plain, 0, float(len(sequences)), [1.0] * len(sequences)
    own, taken = drafting.step(sequences), plain + BETWEEN_RUNS_BYTES
    for count in range(1, most + 1):
        chances = [chance * share for chance, share in zip(chances, shares, strict=True)]
        tokens += sum(chances)
        rows = len(sequences) * count
        taken += own + BETWEEN_RUNS_BYTES * (count <= 2)  # the first guess is one run, all others another
        taken += sum([price.guess(s, rows + place) for place, s in enumerate(sequences, start=1)])
        if tokens / taken > best:
            best, found = tokens / taken, count
    return found, best * plain / len(sequences)

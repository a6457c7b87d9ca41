"""The price and gain of guesses: steps as bytes that could be read in the same time, tokens by their chances.

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

# Overhead between two runs, in engine and device, as bytes that could be read meanwhile: about 0.25 ms at 35 GB/s.
BETWEEN_RUNS_BYTES = 2**23
MIN_GAIN = 1.1  # required tokens per price relative to plain steps, as a margin: the chances are estimates


@dataclass(frozen=True, slots=True)
class Price:
    """What a step of an expert costs, in bytes that could be read in the same time.

    `first`: its first row; `row`: each further one, `few`: those among the first FEW_ROWS; `seen`: each position that a
    row attends to; `kv`: the KV state of each position, which is read once for all rows of a sequence.
    """

    first: float
    row: float
    few: float
    seen: float
    kv: float

    @classmethod
    def of(cls, expert: ServedExpert, balance: Balance) -> Price:
        """From the program's flops and bytes."""
        program, of_few, of_more = expert.exe.program, balance.few, balance.more
        one, two, far = (program_cost(program, s) for s in (_sizes(1, 1), _sizes(2, 3), _sizes(1, 1025)))
        first = one.weight_bytes + one.flops / of_more
        read, flops = two.weight_bytes - one.weight_bytes, two.flops - one.flops
        seen = (far.flops - one.flops) / 1024 / of_more
        return cls(first, read + flops / of_more, read + flops / of_few, seen, expert.kv.bytes_per_token)

    def step(self, sequences: Seq[Sequence]) -> float:
        """The price of a step that draws one token for each sequence."""
        context, few = sum([len(sequence.tokens) for sequence in sequences]), min(len(sequences), FEW_ROWS)
        rows = (few - 1) * self.few + (len(sequences) - few) * self.row
        return self.first + rows + context * (self.seen + self.kv)

    def guess(self, sequence: Sequence, rows: int) -> float:
        """The price of one more guess for this sequence, in a step that then has this many rows."""
        return (self.few if rows <= FEW_ROWS else self.row) + len(sequence.tokens) * self.seen


def _sizes(rows: int, pairs: int) -> Sizes:
    return Sizes(T=rows, B=1, R=rows, context_tokens=rows, pairs=pairs)


def best_count(
    price: Price, drafting: Price, sequences: Seq[Sequence], rates: Seq[float], max_count: int, plain: float
) -> tuple[int, float]:
    """How many drafted guesses per sequence, up to `max_count`, give the most tokens for their price; their speed-up.

    (0, 1.0) if none pay. `price`: of the target expert; `drafting`: of the draft expert, which has read all prompts.
    `rates`: each sequence's acceptance rate; `plain`: the price of a step without guesses.
    """
    best, found, tokens, chances = len(sequences) / plain, 0, float(len(sequences)), [1.0] * len(sequences)
    own, taken = drafting.step(sequences), plain + BETWEEN_RUNS_BYTES
    for count in range(1, max_count + 1):
        chances = [chance * rate for chance, rate in zip(chances, rates, strict=True)]
        tokens += sum(chances)
        rows = len(sequences) * count
        taken += own + BETWEEN_RUNS_BYTES * (count <= 2)  # the first guess is one run, all others another
        taken += sum([price.guess(s, rows + place) for place, s in enumerate(sequences, start=1)])
        if tokens / taken > best:
            best, found = tokens / taken, count
    return found, best * plain / len(sequences)

"""Bucket: the most that a step may have, which grids are made for; and which words of rows are what it really has.

Knows nothing about kernels, and needs neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coterie.kernels.cpu import I64, OPCODE_WORD, OPCODES, ROW_WORDS

_SIZES = {
    opcode.number: [opcode.words[name] for name in ("T", "R") if name in opcode.words] for opcode in OPCODES.values()
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """The most that a step may have: tokens, sequences, sampled rows, and positions of one context.

    Grids are made for it, so one captured step serves all that fit. As many sequences as tokens means decode: attention
    then takes each token by itself, which is right for any step but reads the context of a chunk once a token.
    """

    tokens: int
    sequences: int
    sampled: int
    context: int

    @property
    def decodes(self) -> bool:
        """True when each sequence has one token."""
        return self.tokens == self.sequences


def stops_of(host_rows: I64) -> I64:
    """Where, among the words of a program's rows, T and R are: what `feed` sets to 0 to end a run."""
    words = [i * ROW_WORDS + word for i, row in enumerate(host_rows) for word in _SIZES[int(row[OPCODE_WORD])]]
    return np.array(words, np.int64)

"""Bucket: upper bounds of a step, for which grids are made; and which words of instruction rows hold its true sizes.

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
    """Upper bounds of a step: tokens, sequences, sampled rows, and positions of the longest context.

    Grids are made for these, so one captured step serves all steps that fit. As many sequences as tokens means decode:
    attention then handles each token by itself, which is correct for any step but reads a chunk's context once per
    token.
    """

    tokens: int
    sequences: int
    sampled: int
    context: int

    @property
    def decodes(self) -> bool:
        """Whether each sequence has one token."""
        return self.tokens == self.sequences


def stops_of(host_rows: I64) -> I64:
    """Indices of the words T and R among a program's rows, which `feed` sets to 0 to end a run."""
    words = [i * ROW_WORDS + word for i, row in enumerate(host_rows) for word in _SIZES[int(row[OPCODE_WORD])]]
    return np.array(words, np.int64)

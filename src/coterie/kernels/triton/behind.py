"""Weights of the instructions behind one that leaves memory idle, asked for into the second-level cache meanwhile.

Attention of a few tokens is a chain of short waits: it has programs to spare and reads next to nothing. What comes
behind it, the product of its heads and the first rows of gate and up, would find the memory just waking up.
Knows nothing about attention.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from coterie.kernels.cpu import I64, OPCODE_WORD, OPCODES, ROW_WORDS
from coterie.kernels.triton.arithmetic import INTERPRETED, ask
from coterie.kernels.triton.few import LINE_BYTES
from coterie.kernels.triton.rows import Matrix, dtype_of

LINES = tl.constexpr(512)  # that a program asks for at once
PIECE_BYTES = LINES.value * LINE_BYTES.value
# The weights of an instruction that are read from their first row on, side by side: operand, rows, columns.
_WEIGHTS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "linear": (("weight", "N", "K"),),
    "linear_add": (("weight", "N", "K"),),
    "norm_gate_up_silu_mul": (("gate", "F", "D"), ("up", "F", "D")),
}
_NAMES = {opcode.number: name for name, opcode in OPCODES.items()}


@triton.jit
def ask_behind(row, i, ASKERS: tl.constexpr, ASKED: tl.constexpr):
    """What asker i of ASKERS asks for. ASKED: the word of a weight's address, counted from this row, and its pieces."""
    if not INTERPRETED:
        for a in tl.static_range(len(ASKED)):
            at = tl.load(row + ASKED[a][0]).to(tl.pointer_type(tl.uint8))
            for piece in tl.range(i, ASKED[a][1], ASKERS):
                ask(at + (piece * LINES + tl.arange(0, LINES)).to(tl.int64) * LINE_BYTES)


def asked_behind(later: I64 | None, most_bytes: int) -> tuple[tuple[int, int], ...]:
    """What to ask for, of the weights of the rows that follow, up to so many bytes. See ask_behind."""
    asked: list[tuple[int, int]] = []
    for distance, row in enumerate(() if later is None else later, 1):
        name = _NAMES[int(row[OPCODE_WORD])]
        words, weights = OPCODES[name].words, _WEIGHTS.get(name, ())
        share_bytes = most_bytes // max(len(weights), 1)
        for operand, rows, columns in weights:
            matrix = Matrix.of(dtype_of(row, name, operand), int(row[words[columns]]))
            size_bytes = int(row[words[rows]]) * matrix.STRIDE * matrix.TYPE.primitive_bitwidth // 8
            pieces = min(size_bytes, share_bytes) // PIECE_BYTES
            most_bytes -= pieces * PIECE_BYTES
            if pieces:
                asked.append((distance * ROW_WORDS + words[operand], pieces))
        if most_bytes < PIECE_BYTES:
            break
    return tuple(asked)

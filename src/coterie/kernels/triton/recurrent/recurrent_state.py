"""Addresses of a sequence's recurrent state in a layer: units of one size, none split across blocks.

Knows nothing about what a unit holds (see graph/delta_net/ops.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, pointer
from coterie.kernels.triton.rows import Call
from coterie.kernels.triton.tiles import power_of_two

# State operands have the same order in every instruction with a state: these are their offsets from `positions`.
_WORDS = OPCODES["gated_delta"].words
SEQUENCE, TABLES, WIDTH, KV, FIRST_UNIT = (
    tl.constexpr(_WORDS[name] - _WORDS["positions"])
    for name in ("sequence", "state_tables", "table_width", "kv", "first_unit")
)

MAX_LOOKED = tl.constexpr(1024)  # tokens examined at once in the search for those of a sequence


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Compile-time parameters: bytes of a block and of a unit, most tokens of a step; SINGLE: it has one sequence."""

    BLOCK_BYTES: int
    UNIT_BYTES: int
    TOKENS: int
    SINGLE: bool

    @staticmethod
    def of(call: Call) -> StateLayout:
        """The parameters of a call."""
        bucket = call.bucket
        sizes = call.integer("block_bytes"), call.integer("unit_bytes")
        return StateLayout(*sizes, power_of_two(bucket.tokens), bucket.sequences == 1)

    def constants(self) -> dict[str, object]:
        """Names and values of the compile-time parameters."""
        return {name: getattr(self, name) for name in self.__slots__}


@triton.jit
def unit_at(row, STATE: tl.constexpr, sequence, unit, mask, BLOCK_BYTES: tl.constexpr, UNIT_BYTES: tl.constexpr):
    """Pointers to units of a sequence's state in the instruction row's layer, as float32."""
    EACH: tl.constexpr = BLOCK_BYTES // UNIT_BYTES
    number = integer(row, STATE + FIRST_UNIT) + unit
    tables = pointer(row, STATE + TABLES, tl.int32) + sequence * integer(row, STATE + WIDTH)
    block = tl.load(tables + number // EACH, mask=mask, other=0).to(tl.int64)
    at = pointer(row, STATE + KV, tl.uint8) + block * BLOCK_BYTES + number % EACH * UNIT_BYTES
    return at.to(tl.pointer_type(tl.float32), bitcast=True)


@triton.jit
def matrix_of(
    row, STATE: tl.constexpr, sequence, unit, first, count, k, c, K: tl.constexpr, C: tl.constexpr,
    BLOCK_BYTES: tl.constexpr, UNIT_BYTES: tl.constexpr,
):  # fmt: skip
    """Rows k and columns c of a unit's matrix [K][C] as of token `first`; pointers to them; and their mask.

    Values are 0 before position 0, and where the sequence has no token in the step.
    """
    mask = (k < K)[:, None] & (c < C)[None, :]
    begins = tl.load(pointer(row, STATE, tl.int32) + first, mask=count > 0, other=0) == 0
    state = unit_at(row, STATE, sequence, unit, count > 0, BLOCK_BYTES, UNIT_BYTES) + k[:, None] * C + c[None, :]
    return tl.load(state, mask=mask & (begins == 0), other=0.0), state, mask


@triton.jit
def tokens_of(row, STATE: tl.constexpr, sequence, count, TOKENS: tl.constexpr, SINGLE: tl.constexpr):
    """The first token of a sequence among the step's `count`, and how many it has; they are adjacent."""
    if SINGLE:
        first, found = count * 0, count
    else:
        STEP: tl.constexpr = min(TOKENS, MAX_LOOKED)
        owners = pointer(row, STATE + SEQUENCE, tl.int32)
        first, found = TOKENS, 0
        for start in tl.range(0, count, STEP):
            t = start + tl.arange(0, STEP)
            mine = tl.load(owners + t, mask=t < count, other=-1) == sequence
            first = tl.minimum(first, tl.min(tl.where(mine, t, TOKENS), axis=0))
            found += tl.sum(mine.to(tl.int32), axis=0)
    return first, found

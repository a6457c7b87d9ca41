"""Where a position's keys and values are: pages of Z tokens laid out [layer][k or v][kv head][Z][C].

Or where the one row of a position is that all heads share (latent attention): pages laid out [layer][Z][C].

Knows nothing about who owns the pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, pointer
from coterie.kernels.triton.rows import TYPES, Call

# The operands of pages follow each other alike in every instruction that has them: so far behind `positions`.
_WORDS = OPCODES["kv_append"].words
SEQUENCE, TABLES, WIDTH, KV, LAYER = (
    tl.constexpr(_WORDS[name] - _WORDS["positions"])
    for name in ("sequence", "block_tables", "table_width", "kv", "layer")
)


@dataclass(frozen=True, slots=True)
class Pages:
    """What kernels are compiled for: the pages' type, K kv heads of C channels, Z tokens in BLOCK_BYTES."""

    KV_TYPE: tl.dtype
    K: int
    C: int
    Z: int
    BLOCK_BYTES: int

    @staticmethod
    def of(call: Call) -> Pages:
        """Those of a call."""
        K, C, Z, size = (call.integer(name) for name in ("K", "C", "Z", "block_bytes"))
        return Pages(TYPES[call.dtype("kv")], K, C, Z, size)

    def constants(self) -> dict[str, object]:
        """Names and values of the compile-time parameters."""
        return {name: getattr(self, name) for name in self.__slots__}


@triton.jit
def block_of(row, PAGES: tl.constexpr, sequence, position, mask, Z: tl.constexpr):
    """The blocks that hold positions of sequences, by the block table."""
    tables = pointer(row, PAGES + TABLES, tl.int32)
    return tl.load(tables + sequence * integer(row, PAGES + WIDTH) + position // Z, mask=mask, other=0)


@triton.jit
def page_at(
    row,
    PAGES: tl.constexpr,
    block,
    position,
    part,
    head,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    """Pointers to channel 0 of a kv head's keys (part 0) or values (part 1) at positions, whose blocks are given."""
    layer = integer(row, PAGES + LAYER)
    blocks = pointer(row, PAGES + KV, tl.uint8) + block.to(tl.int64) * BLOCK_BYTES
    return blocks.to(tl.pointer_type(KV_TYPE), bitcast=True) + (((layer * 2 + part) * K + head) * Z + position % Z) * C


@triton.jit
def latent_row_at(
    row,
    PAGES: tl.constexpr,
    block,
    position,
    KV_TYPE: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    """Pointers to number 0 of the latent rows at positions, whose blocks are given."""
    blocks = pointer(row, PAGES + KV, tl.uint8) + block.to(tl.int64) * BLOCK_BYTES
    rows = blocks.to(tl.pointer_type(KV_TYPE), bitcast=True)
    return rows + (integer(row, PAGES + LAYER) * Z + position % Z) * C


@triton.jit
def token_at(
    row,
    PAGES: tl.constexpr,
    t,
    position,
    head,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    """Pointers to channel 0 of kv heads' keys and of their values, at the position of token t of the step."""
    sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + t)
    block = block_of(row, PAGES, sequence, position, True, Z)
    keys = page_at(row, PAGES, block, position, 0, head, KV_TYPE, K, C, Z, BLOCK_BYTES)
    return keys, page_at(row, PAGES, block, position, 1, head, KV_TYPE, K, C, Z, BLOCK_BYTES)

"""Addresses of keys and values in the KV cache: pages of Z tokens laid out [layer][k or v][kv head][Z][C].

For latent attention, a position has one row that all heads share: pages are laid out [layer][Z][C].

Knows nothing about who owns the pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, pointer
from coterie.kernels.triton.rows import TYPES, Call

# Page operands have the same order in every instruction with pages: these are their offsets from `positions`.
_WORDS = OPCODES["kv_append"].words
SEQUENCE, TABLES, WIDTH, KV, LAYER = (
    tl.constexpr(_WORDS[name] - _WORDS["positions"])
    for name in ("sequence", "block_tables", "table_width", "kv", "layer")
)


@dataclass(frozen=True, slots=True)
class Pages:
    """Compile-time parameters: the pages' type, K kv heads of C channels, Z tokens per page, BLOCK_BYTES per block."""

    KV_TYPE: tl.dtype
    K: int
    C: int
    Z: int
    BLOCK_BYTES: int

    @staticmethod
    def of(call: Call) -> Pages:
        """The parameters of a call."""
        K, C, Z, size = (call.integer(name) for name in ("K", "C", "Z", "block_bytes"))
        return Pages(TYPES[call.dtype("kv")], K, C, Z, size)

    def constants(self) -> dict[str, object]:
        """Names and values of the compile-time parameters."""
        return {name: getattr(self, name) for name in self.__slots__}


@triton.jit
def block_of(row, PAGES: tl.constexpr, sequence, position, mask, Z: tl.constexpr):
    """Blocks that hold positions of sequences, from the block table."""
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
    """Pointers to channel 0 of a kv head's keys (part 0) or values (part 1) at positions in the given blocks."""
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
    """Pointers to the start of the latent rows at positions in the given blocks."""
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
    """Pointers to channel 0 of kv heads' keys and of their values, at the position of the step's token t."""
    sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + t)
    block = block_of(row, PAGES, sequence, position, True, Z)
    keys = page_at(row, PAGES, block, position, 0, head, KV_TYPE, K, C, Z, BLOCK_BYTES)
    return keys, page_at(row, PAGES, block, position, 1, head, KV_TYPE, K, C, Z, BLOCK_BYTES)

"""Tile shapes of matrix products: a few weight rows and all tokens, or a tile of rows x tokens.

Knows nothing about which are chosen (tiles.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

MAX_ONE_ROWS, MAX_PACKED_ROWS = 4, 8  # per program that keeps each row's sums apart (one_token.py)
MIN_COLUMNS = 64  # per step of a product
Q2_GROUP = 8  # columns per scale where a column holds four weights (2 bits)
Q6_GROUP = 4  # and where it holds four 6-bit weights; no other format has so few, so it identifies this one
FOUR_WEIGHT_GROUPS = (Q2_GROUP, Q6_GROUP)
MIN_DOT = 16  # smallest number of rows, tokens or columns in a tensor-core product


@dataclass(frozen=True, slots=True)
class CudaCoreTile:
    """A product of few tokens on CUDA cores: weight rows per program, columns per step, warps, steps unrolled.

    A thread has rows x columns x tokens / (32 x warps) accumulators.
    """

    rows: int
    columns: int
    warps: int
    unroll: int = 1
    registers: int | None = None  # limit per thread, where higher occupancy is worth it
    several: bool = False  # threads keep their columns of several tokens (packed weights, one_token.py)

    def constants(self, tokens: int, group: int) -> dict[str, int | bool]:
        """Compile-time parameters, for up to `tokens` tokens and `group` columns per scale."""
        ahead = max(32 * self.warps // self.rows, 1)  # a cache line of the weight per thread
        tile = {"M": power_of_two(tokens), "ROWS": self.rows, "STEP": self.columns, "UNROLL": self.unroll}
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {**tile, "LINES": ahead, "ONE": self.is_one(tokens, group), "num_warps": self.warps, **limit}

    def is_one(self, tokens: int, group: int) -> bool:
        """Whether each thread owns columns of one token, or of each of several (one_token.py).

        Not where a column is four 2-bit weights, nor with many rows.
        """
        most = MAX_ONE_ROWS if group == 1 else MAX_PACKED_ROWS
        return (tokens == 1 or self.several) and group != Q2_GROUP and self.rows <= most

    def for_row(self, columns: int, group: int) -> CudaCoreTile:
        """The tile for rows of `columns` columns, `group` per scale: rows shorter than a step get fewer threads."""
        columns = min(self.columns, max(power_of_two(columns), MIN_COLUMNS, group))
        return replace(self, columns=columns, warps=max(self.warps * columns // self.columns, 1))


@dataclass(frozen=True, slots=True)
class TensorCoreTile:
    """A product of many tokens on tensor cores: a tile of rows x tokens, `columns` per step, `stages` steps in flight.

    Tiles left over after full waves are cut in `pieces`, so that all multiprocessors finish together: along tokens, or
    along rows where tensor descriptors load the operands (`described`; described.py).
    """

    rows: int
    tokens: int
    columns: int
    warps: int
    stages: int
    pieces: int = 1
    described: bool = False

    def constants(self) -> dict[str, int]:
        """Compile-time parameters."""
        return {"ROWS": self.rows, "TOKENS": self.tokens, "STEP": self.columns, "PIECES": self.pieces}

    def programs(self, n_tiles: int, tokens: int, wave: int) -> int:
        """Most programs that a launch for up to `tokens` tokens needs: fewer tokens may leave more tiles to cut."""
        tiles = (n_tiles * m_tiles for m_tiles in range(1, -(-tokens // self.tokens) + 1))
        return max((self._whole(n, wave) + (n - self._whole(n, wave)) * self.pieces for n in tiles), default=0)

    def waves(self, n_tiles: int, tokens: int, wave: int) -> tuple[int, int]:
        """Whole tiles, and then pieces, that a multiprocessor computes one after another."""
        tiles = n_tiles * -(-tokens // self.tokens)
        whole = self._whole(tiles, wave)
        return -(-whole // wave), -(-(tiles - whole) * self.pieces // wave)

    def _whole(self, tiles: int, wave: int) -> int:
        return tiles if self.pieces == 1 else tiles // wave * wave

    def for_heads(self, least_rows: int, group: int) -> TensorCoreTile:
        """The tile for whole heads of `least_rows` rows.

        With more rows, a step has fewer columns, to fit shared memory.
        """
        rows = max(self.rows, least_rows)
        pieces = min(self.pieces, rows // least_rows) if self.described else self.pieces
        least = MIN_COLUMNS // 2 if group in FOUR_WEIGHT_GROUPS else MIN_COLUMNS
        columns = max(self.columns * self.rows // rows, least, group)
        return replace(self, rows=rows, columns=columns, pieces=pieces)

    def for_group(self, group: int) -> TensorCoreTile:
        """The tile for `group` columns per scale; half as many columns of four weights as of two."""
        columns = max(self.columns // 2 if group in FOUR_WEIGHT_GROUPS else self.columns, group)
        if group == Q6_GROUP:  # each dot takes one weight per column, whose three bytes stay in registers
            columns = min(max(columns, MIN_DOT), MIN_COLUMNS)
        return replace(self, columns=columns)


CudaTable: TypeAlias = tuple[tuple[int, CudaCoreTile], ...]  # (upper bound of a size, choice), as in `choose`
TensorTable: TypeAlias = tuple[tuple[int, TensorCoreTile], ...]
Choice = TypeVar("Choice")


def choose(table: tuple[tuple[int, Choice], ...], size: int) -> Choice:
    """The choice of the first entry whose bound is not below `size`."""
    return next(choice for bound, choice in table if size <= bound)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()

"""What a program of a product has: a few rows and each token, or a tile of rows and of tokens.

Knows nothing about which are chosen (tiles.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_ONE_ROWS, MAX_PACKED_ROWS = 4, 8  # of a program with one token, which keeps each row's sums by themselves
MIN_COLUMNS = 64  # of a step of a product
OF_FOUR = 8  # columns that share a scale where each is four weights
OF_SIX = 4  # and where each is four weights of six bits; of no others are they so few
FOURS = (OF_FOUR, OF_SIX)
MIN_DOT = 16  # rows, tokens and columns of a product on tensor cores


@dataclass(frozen=True, slots=True)
class Few:
    """A program of a product with few tokens: rows of the weight, columns read at once, warps, steps unrolled.

    A thread keeps rows x columns x tokens / (32 x warps) sums.
    """

    rows: int
    columns: int
    warps: int
    unroll: int = 1
    registers: int | None = None  # of a thread at most, where more programs at once are worth it
    several: bool = False  # threads have columns of each of a few tokens, of packed weights

    def constants(self, tokens: int, group: int) -> dict[str, int | bool]:
        """Names and values of the compile-time parameters, for up to so many tokens and `group` columns to a scale."""
        ahead = max(32 * self.warps // self.rows, 1)  # a line of the weight for each thread
        tile = {"M": power_of_two(tokens), "ROWS": self.rows, "STEP": self.columns, "UNROLL": self.unroll}
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {**tile, "LINES": ahead, "ONE": self.is_one(tokens, group), "num_warps": self.warps, **limit}

    def is_one(self, tokens: int, group: int) -> bool:
        """Whether threads have columns of one token, or of each of several (one_token.py): not where a column is four
        weights, nor of many rows.
        """
        most = MAX_ONE_ROWS if group == 1 else MAX_PACKED_ROWS
        return (tokens == 1 or self.several) and group != OF_FOUR and self.rows <= most

    def for_row(self, columns: int, group: int) -> Few:
        """For rows of so many columns, `group` of which share a scale: one shorter than a step has fewer threads."""
        columns = min(self.columns, max(power_of_two(columns), MIN_COLUMNS, group))
        return replace(self, columns=columns, warps=max(self.warps * columns // self.columns, 1))


@dataclass(frozen=True, slots=True)
class Many:
    """A program of a product with many tokens: a tile of rows x tokens, `columns` a step, steps under way at once.

    What is left after full waves of tiles is cut in `pieces`, so that all multiprocessors end alike: of fewer tokens,
    or of fewer rows where weights and tokens are `described` (described.py).
    """

    rows: int
    tokens: int
    columns: int
    warps: int
    stages: int
    pieces: int = 1
    described: bool = False

    def constants(self) -> dict[str, int]:
        """Names and values of the compile-time parameters."""
        return {"ROWS": self.rows, "TOKENS": self.tokens, "STEP": self.columns, "PIECES": self.pieces}

    def programs(self, n_tiles: int, tokens: int, wave: int) -> int:
        """How many a launch for up to so many tokens may need: fewer tokens may leave more tiles to be cut."""
        tiles = (n_tiles * m_tiles for m_tiles in range(1, -(-tokens // self.tokens) + 1))
        return max((self._whole(n, wave) + (n - self._whole(n, wave)) * self.pieces for n in tiles), default=0)

    def waves(self, n_tiles: int, tokens: int, wave: int) -> tuple[int, int]:
        """How many tiles, and then how many pieces, follow one another on a multiprocessor."""
        tiles = n_tiles * -(-tokens // self.tokens)
        whole = self._whole(tiles, wave)
        return -(-whole // wave), -(-(tiles - whole) * self.pieces // wave)

    def _whole(self, tiles: int, wave: int) -> int:
        return tiles if self.pieces == 1 else tiles // wave * wave

    def for_heads(self, least_rows: int, group: int) -> Many:
        """For whole heads; `group` columns share a scale. More rows have fewer columns a step, or memory runs out."""
        rows = max(self.rows, least_rows)
        pieces = min(self.pieces, rows // least_rows) if self.described else self.pieces
        least = MIN_COLUMNS // 2 if group in FOURS else MIN_COLUMNS
        columns = max(self.columns * self.rows // rows, least, group)
        return replace(self, rows=rows, columns=columns, pieces=pieces)

    def for_group(self, group: int) -> Many:
        """For columns of which `group` share a scale; half as many of four weights as of two."""
        columns = max(self.columns // 2 if group in FOURS else self.columns, group)
        if group == OF_SIX:  # a product has one weight of each column, and a thread three bytes
            columns = min(max(columns, MIN_DOT), MIN_COLUMNS)
        return replace(self, columns=columns)


def power_of_two(size: int) -> int:
    """The least that is not smaller."""
    return 1 << max(size - 1, 0).bit_length()

"""How large the tiles of kernels are, in one table. What was timed, on an H100, says so.

The others come from counting registers, shared memory and bytes under way there (132 multiprocessors, 64 K registers
and 228 KB of shared memory each), and wait for measurements.
Knows nothing about kernels' operands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

from coterie.kernels.triton.product.tile import (
    FOURS,
    MAX_PACKED_ROWS,
    MIN_COLUMNS,
    MIN_DOT,
    OF_FOUR,
    OF_SIX,
    Few,
    Many,
    power_of_two,
)

__all__ = ["H100", "MIN_DOT", "Few", "Many", "Tiles", "power_of_two", "tiles_for"]

Choice = TypeVar("Choice")
ANY = 1 << 62  # rows, columns, channels or tokens
OF_TWO = 16  # columns that share a scale where each is two weights
# Shared memory of a program at most, by capability. Source: CUDA C++ Programming Guide, technical specifications.
SHARED_BYTES = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
MIN_SHARED_BYTES = 99 << 10  # of all others: what cards for games have, 8.6, 8.9 and 12.0
OTHER_BYTES = 1024  # of a product's program beside its steps: scales, sums of warps
MIN_TOKENS = 8  # of a product on tensor cores whose left operand is the weight
LOADED = 4  # values of a token, in float32, that a thread loads at once


@dataclass(frozen=True, slots=True)
class Tiles:
    """The choices. Pairs are (up to this size, choice), the last one serving all sizes."""

    few_tokens: int = 4  # up to so many tokens are multiplied in float32 on ordinary cores
    # One token and weights that are not packed, by columns and rows of the weight; first what q, k and v of so many
    # columns take. Measured in whole steps of a Llama of 1B and of 7B on an H100.
    one_heads: tuple[tuple[int, Few], ...] = ((2048, Few(4, 2048, 4)), (ANY, Few(4, 2048, 8, registers=64)))
    one: tuple[tuple[int, int, Few], ...] = (
        (2048, 8192, Few(2, 2048, 4)),
        (2048, 16384, Few(4, 2048, 8)),
        (2048, ANY, Few(2, 2048, 4)),
        (4096, 8192, Few(4, 2048, 4)),
        (4096, ANY, Few(2, 2048, 8)),
        (8192, ANY, Few(2, 1024, 8, registers=64)),
        (ANY, ANY, Few(4, 2048, 8)),
    )
    # One token and packed weights, by bytes of a row and by rows; 8 bytes a thread. By the instructions of a weight.
    one_packed: tuple[tuple[int, int, Few], ...] = (
        (2048, 4096, Few(4, 512, 2)),
        (1024, ANY, Few(8, 256, 1)),
        (2048, ANY, Few(8, 512, 2)),
        (ANY, ANY, Few(4, 1024, 4)),
    )
    # Up to so many tokens meet them so, with sums of each row and token, by tokens, bytes of a row and rows; with 1 for
    # that number, more tokens meet them as they do other weights.
    packed_tokens: int = 4
    few_packed: tuple[tuple[int, int, int, Few], ...] = (
        (2, 2048, 4096, Few(4, 512, 2)),
        (2, 2048, ANY, Few(8, 512, 2)),
        (ANY, 2048, ANY, Few(4, 512, 2)),
        (ANY, ANY, ANY, Few(4, 1024, 4)),
    )
    # The same of six bits, by columns, each of which is four weights: in one step where a row is not long.
    six: tuple[tuple[int, int, int, Few], ...] = (
        (ANY, 512, 4096, Few(4, 512, 2)),
        (ANY, 512, ANY, Few(8, 512, 2)),
        (ANY, 1024, ANY, Few(8, 1024, 4)),
        (2, ANY, ANY, Few(4, 1024, 4)),
        (ANY, ANY, ANY, Few(2, 1024, 4)),
    )
    # By rows of the weight: at least four programs for each multiprocessor where the weight has that many rows.
    few_rows: tuple[tuple[int, int], ...] = ((2048, 4), (8192, 8), (ANY, 16))
    few_sums: int = 2048  # rows x columns of a program, times up to four tokens: at most 64 sums a thread
    few_warps: int = 4
    few_unroll: int = 4  # loads of so many steps are under way; half as many with more tokens, and again in float32
    # Changes of low rank: of so few rows a program has one, or there would be too few programs; of rows of so few
    # columns it has as many as two warps load at once.
    low_rank: int = 64
    low_weights: int = 512
    low_warps: int = 2
    # By tokens: a step of decode for a batch has narrow tiles; prefill has large ones.
    many: tuple[tuple[int, Many], ...] = (
        (16, Many(64, 16, 256, 4, 4)),
        (32, Many(64, 32, 128, 4, 4)),
        (64, Many(128, 64, 64, 4, 4)),
        (ANY, Many(128, 128, 64, 8, 3)),
    )
    # Up to so many tokens, weights of 16 bits or packed, but of six or two bits, have tiles of fewer rows, by rows of
    # the weight, whose columns are slices for warps (slices.py): as many as there are multiprocessors. And they ask for
    # weights before they wait for the last launch. By count: docs/triton.md. With 0 tokens they have those above.
    narrow_tokens: int = 16
    narrow: tuple[tuple[int, Many], ...] = ((4096, Many(16, 16, 512, 8, 4)), (ANY, Many(32, 16, 256, 8, 4)))
    narrow_packed: tuple[tuple[int, Many], ...] = ((4096, Many(16, 16, 512, 8, 4)), (ANY, Many(32, 16, 512, 8, 3)))
    narrow_ahead: bool = True
    # The same where weights are packed, whose columns are bytes: a thread has registers for so many as it widens them.
    packed: tuple[tuple[int, Many], ...] = ((16, Many(64, 16, 128, 4, 6)), *many[1:])
    # And where groups have zeros, for which there must be room beside them.
    with_zeros: tuple[tuple[int, Many], ...] = (*packed[:2], (64, Many(128, 64, 64, 8, 4)), *packed[3:])
    # Of layers with branches, by the tokens that take a branch in the mean; some branches have twice as many. Where
    # there are many, small tiles leave less of a branch's last one empty.
    branches: tuple[tuple[int, Many], ...] = (
        (8, Many(64, 16, 256, 4, 4)),
        (16, Many(64, 32, 128, 4, 4)),
        (256, Many(128, 64, 64, 4, 4)),
        (ANY, Many(128, 128, 64, 8, 3)),
    )
    packed_branches: tuple[tuple[int, Many], ...] = (
        (8, Many(64, 16, 128, 4, 6)),
        (16, Many(64, 32, 128, 4, 4)),
        (256, Many(128, 64, 64, 8, 4)),
        (ANY, Many(128, 128, 64, 8, 3)),
    )
    # Prefill with weights that are not packed has larger tiles. Of each way, how long a tile takes, and a piece of one;
    # the way that takes least for all multiprocessors is taken. Tiles were measured as `one` was, pieces were not.
    waves: tuple[tuple[float, float, Many], ...] = (
        (1.0, 1.0, Many(128, 256, 64, 8, 4)),
        (1.0, 0.55, Many(128, 256, 64, 8, 4, 2)),
        (1.0, 0.35, Many(128, 256, 64, 8, 4, 4)),
        (0.55, 0.55, Many(128, 128, 64, 8, 3)),
    )
    # The same where tensor descriptors take weights and tokens. Whole tiles of 256 rows were measured as `one` was.
    descriptors: bool = True
    described: tuple[tuple[float, float, Many], ...] = (
        (1.0, 1.0, Many(256, 128, 64, 8, 3, described=True)),
        (1.0, 0.55, Many(256, 128, 64, 8, 3, 2, described=True)),
        (1.0, 0.35, Many(256, 128, 64, 8, 3, 4, described=True)),
        (0.6, 0.6, Many(128, 128, 64, 8, 5, described=True)),
    )
    multiprocessors: int = 132
    many_float32: Many = field(
        default=Many(64, 32, 32, 4, 3)
    )  # no tensor core: a thread keeps what it multiplies in registers
    # Changes of low rank of many tokens, which may lie in shares, by the tokens of a sequence in the mean. Of few rows:
    # few tokens to a program as well, two rows of the weight each; or all rows in one tile, so that a token is read
    # once. Of few columns: all of them in one step.
    low_mean: int = 8
    low_rows: tuple[tuple[int, Many], ...] = ((512, Many(64, 16, 256, 4, 4)), (ANY, Many(64, 32, 128, 4, 4)))
    low_columns: tuple[tuple[int, Many], ...] = ((16, Many(64, 16, 64, 4, 1)), (ANY, Many(64, 64, 64, 4, 1)))
    shared_bytes: int = SHARED_BYTES[(9, 0)]  # of a program at most: steps of products under way, and rows of pages
    wide_step: int = 64  # positions that attention of wide heads and of latent rows reads at once
    group: int = 8  # tiles of rows that share the second-level cache before the next ones are begun
    # By channels, the positions that one program of decode attention reads, and its warps. For all contexts: another
    # span adds up in another order, and a token's bits must not depend on who is beside it. As `one`; fewer are faster
    # in contexts of 512 (32 of 64 channels take 2 % off a step of 1B), more in those of 8192.
    spans: tuple[tuple[int, int, int], ...] = ((64, 64, 4), (256, 128, 4), (ANY, 128, 8))
    span_bytes: int = 16384  # and bytes of keys that it reads at once
    joined: int = 2048  # values of spans' sums that are joined at once
    queries: int = 128  # of a tile of prefill attention: tokens x the query heads of a kv head; fewer of wide heads
    keys: int = 64  # positions that such a tile reads at once, half of them where heads are wide
    chunk_warps: int = 4
    chunk_stages: int = 3
    chunk_registers: int | None = None  # of a thread at most, where heads have up to 64 channels
    staged: int = 8192  # values of a row of activations that are loaded at once when it is rounded for tensor cores
    staged_warp: int = 512  # of these for each warp, of which there are at most 8
    stages_ahead: bool = (
        True  # values are rounded for the next launch where they are made, or else read again and rounded
    )
    elements: int = 1024  # of a program that maps values one by one, at once
    mapping: int = 16  # such programs for each multiprocessor, as many as it has room for
    # Gated delta nets: numbers of a head's matrix that a program of decode has whole, with the norm behind it; those of
    # a thread; columns of a program of a prompt, half as many where these would be few programs; tokens under way.
    delta_whole: int = 128 * 128
    delta_numbers: int = 32
    delta_width: int = 8
    delta_stages: int = 3
    conv_channels: int = 256  # of a program of their convolution
    conv_tokens: int = 16  # and tokens, where it has a tile of them
    vocabulary: int = 4096  # logits that the sampler reads at once
    vocabulary_unroll: int = 4  # such steps whose loads are under way where it looks for the largest
    vocabulary_search: int = 1024  # and where it compares each with 16 bounds
    # Programs may begin while those of the launch before are still running, and ask for their weights meanwhile
    # (programmatic dependent launch: capability 9.0 and later).
    early: bool = True
    walk_one: Few = field(default=Few(2, 2048, 4))
    walk_packed: Few = field(default=Few(4, 1024, 4))
    walk_warps: int = 4  # of a program that walks all rows, whatever their kernels have when launched by themselves
    walk_programs: int = 4  # of a multiprocessor at most; more have more loads under way and meet later
    walk_ahead: int = 1  # units of work whose weights are asked for before their turn, in steps of one token
    walk_vocabulary: int = 1024  # with fewer warps, the sampler's registers would be the most of all kernels'
    walk_search: int = 128

    def few(
        self, rows: int, K: int, tokens: int, group: int, wide: bool, least_rows: int = 1, heads: bool = False,
        several: bool = False,
    ) -> Few:  # fmt: skip
        """For a weight with so many rows of K columns, of which `least_rows` rows stay together; of q, k and v or not;
        for a kernel that meets `several` tokens as it does one, or not.

        `group` columns share a scale, 1 where none do; `wide` is float32.
        """
        if tokens == 1 and group == 1:
            by_rows = tuple((most, few) for columns, most, few in self.one if K <= columns)
            one = _choose(self.one_heads, K) if heads else _choose(by_rows, rows)
            most = max(one.rows, least_rows)
            limit = one.registers if most == one.rows and not wide else None
            least = LOADED * 32 * one.warps if most == one.rows else MIN_COLUMNS
            columns = max(one.columns * one.rows // most // (1 + wide), least)
            return replace(one, rows=most, columns=columns, registers=limit)
        several = several and 1 < tokens <= self.packed_tokens and group > 1
        if (tokens == 1 or several) and group != OF_FOUR and least_rows <= MAX_PACKED_ROWS:
            columns = K // (4 if group == OF_SIX else 1 + (group == OF_TWO))
            table = self.few_packed if several else tuple([(1, *one) for one in self.one_packed])
            table = self.six if group == OF_SIX else table
            one = next(few for most, size, many, few in table if tokens <= most and columns <= size and rows <= many)
            return replace(one, rows=max(one.rows, least_rows), several=several).for_row(columns, group)
        mine = _choose(self.few_rows, rows)
        # With more rows of six bits, threads would load two values of a token at once, where four are one load.
        mine = max(min(mine, MAX_PACKED_ROWS) if group == OF_SIX else mine, least_rows)
        # A column of four weights meets as many values of each token, for which there must be room.
        sums = self.few_sums // 2 if tokens > 1 and group in FOURS else self.few_sums
        columns = max(sums // mine, group, MIN_COLUMNS)
        warps = self.few_warps * (2 if mine * columns > self.few_sums else 1)
        return Few(mine, columns, warps, max(self.few_unroll // (1 + (tokens > 1)) // (1 + wide), 1))

    def few_by_itself(self, rows: int, K: int, tokens: int, group: int, wide: bool, several: bool = False) -> Few:
        """As `few`, for a product that is a kernel by itself, and so may be half of a change of low rank."""
        few = self.few(rows, K, tokens, group, wide, several=several)
        if K <= self.low_rank:
            columns = max(power_of_two(K), MIN_DOT, group)
            return Few(max(self.low_weights // columns, 1), columns, self.low_warps)
        return Few(1, max(self.few_sums, group), self.few_warps, few.unroll) if rows <= self.low_rank else few

    def for_walk(self) -> Tiles:
        """For kernels that are walked in one launch: its registers are those of the kernel that needs most."""
        tiles = replace(
            self, vocabulary=self.walk_vocabulary, vocabulary_search=self.walk_search, early=False, vocabulary_unroll=1
        )
        tiles = replace(tiles, delta_whole=self.delta_numbers * 32 * self.walk_warps)
        one, packed = ((ANY, ANY, self.walk_one),), ((ANY, ANY, self.walk_packed),)
        six = ((ANY, ANY, ANY, self.walk_packed),)
        return replace(tiles, one_heads=((ANY, self.walk_one),), one=one, one_packed=packed, six=six, packed_tokens=1)

    def row(self, size: int) -> tuple[int, int]:
        """How many values of a row of activations a program stages at once, all of a short row's; and its warps."""
        step = min(power_of_two(size), self.staged)
        return step, min(max(step // self.staged_warp, 1), 8)

    def span(self, channels: int) -> tuple[int, int]:
        """How many positions one program of decode attention reads of heads as wide, and its warps."""
        return next((span, warps) for wide, span, warps in self.spans if channels <= wide)

    def delta_columns(self, values: int) -> int:
        """How many columns of a head a program keeps, of so many of all heads: a few programs a multiprocessor."""
        few = values // self.delta_width < 4 * self.multiprocessors
        return max(self.delta_width // (1 + few), 1)

    def step(self, size: int) -> int:
        """Of a program that walks one row of values: the row at once where it is short."""
        return min(power_of_two(size), self.elements)

    def of_branches(self, mean: int, group: int, wide: bool) -> Many:
        """For matrices of branches that so many tokens take in the mean; otherwise as `many_of`."""
        chosen = _choose(self.branches if group == 1 else self.packed_branches, mean)
        if wide:
            chosen = replace(self.many_float32, tokens=min(chosen.tokens, self.many_float32.tokens))
        return self.fitted(chosen.for_group(group), group, wide)

    def fitted(self, many: Many, group: int, wide: bool) -> Many:
        """With fewer steps under way, and then fewer columns, where there is no room for more in shared memory."""
        if self.shared_bytes >= SHARED_BYTES[(9, 0)]:  # what tiles were chosen for
            return many
        weights = 4 if group in FOURS else 2 if group == OF_TWO else 1  # of a column
        of_row = 4 if wide else 2 if group == 1 else 3 if group == OF_SIX else 1
        column_bytes = many.rows * of_row + many.tokens * weights * (4 if wide else 2)
        room = (self.shared_bytes - OTHER_BYTES) // column_bytes
        columns, least = many.columns, max(MIN_DOT, group)
        while columns > room and columns > least:
            columns //= 2
        return replace(many, columns=columns, stages=max(min(many.stages, room // columns + 1), 2))

    def few_in_shares(self, rows: int, K: int, tokens: int, sequences: int, group: int, wide: bool) -> Few | None:
        """For weights that are each met by some of the tokens; None where these are multiplied on tensor cores."""
        if tokens <= self.few_tokens:
            return self.few_by_itself(rows, K, tokens, group, wide)
        if rows > self.low_rank or K <= self.low_rank or tokens > self.low_mean * sequences:
            return None
        return Few(2, max(self.few_sums // 2, group), self.few_warps, max(self.few_unroll // 2 // (1 + wide), 1))

    def many_in_shares(self, rows: int, K: int, tokens: int, sequences: int, group: int, wide: bool) -> Many:
        """The same for more tokens; otherwise as `many_of`."""
        mean = tokens // max(sequences, 1)
        if min(rows, K) > self.low_rank:
            return self.of_branches(mean, group, wide)
        if K <= self.low_rank:
            chosen = replace(_choose(self.low_columns, mean), columns=max(power_of_two(K), MIN_DOT))
        else:
            chosen = _choose(self.low_rows, mean)
            chosen = replace(chosen, rows=max(min(chosen.rows, power_of_two(rows)), MIN_DOT))
        if wide:
            most = self.many_float32
            chosen = replace(chosen, tokens=min(chosen.tokens, most.tokens), columns=min(chosen.columns, most.columns))
        return self.fitted(chosen.for_group(group), group, wide)

    def many_of(
        self, rows: int, tokens: int, group: int, wide: bool, described: bool = False, zeros: bool = False,
        least_rows: int = MIN_DOT, of_head: int = 0,
    ) -> Many:  # fmt: skip
        """For a weight with so many rows and a step with up to so many tokens.

        `group` columns share a scale, 1 where none do; `wide` is float32; `described` says what descriptors take;
        `zeros` that groups have zeros; `least_rows` of a tile stay together; a head has `of_head`, which do so in all
        tiles but narrow ones.
        """
        narrow = _choose(self.narrow if group == 1 else self.narrow_packed, rows)
        if tokens <= self.narrow_tokens and group not in FOURS and not wide and least_rows <= narrow.rows:
            narrow = replace(narrow, tokens=min(narrow.tokens, max(power_of_two(tokens), MIN_TOKENS)))
            return self.fitted(narrow, 2 * OF_TWO if group == OF_TWO else group, False)  # a byte of two is read twice
        chosen = _choose(self.many if group == 1 else self.with_zeros if zeros else self.packed, tokens)
        if chosen is self.many[-1][1] and group == 1 and not wide:

            def cost(way: tuple[float, float, Many]) -> float:
                of_tile, of_piece, many = way
                tiles, pieces = many.waves(-(-rows // many.rows), tokens, self.multiprocessors)
                return tiles * of_tile + pieces * of_piece

            chosen = min(self.described if described and self.descriptors else self.waves, key=cost)[2]
        if wide:
            chosen = replace(self.many_float32, tokens=min(chosen.tokens, self.many_float32.tokens))
        chosen = chosen.for_group(group)
        return self.fitted(chosen.for_heads(of_head, group) if of_head else chosen, group, wide)


def _choose(table: tuple[tuple[int, Choice], ...], size: int) -> Choice:
    return next(choice for most, choice in table if size <= most)


H100 = Tiles()
DESCRIBED = 9  # the capability for whose shared memory tiles that descriptors copy were chosen
EARLY_FROM = (9, 0)  # the first capability with programmatic dependent launch. Source: CUDA C++ Programming Guide


def tiles_for(capability: tuple[int, int], multiprocessors: int) -> Tiles:
    """Those for a GPU of a compute capability, with so many multiprocessors."""
    described, shared = capability[0] == DESCRIBED, SHARED_BYTES.get(capability, MIN_SHARED_BYTES)
    # Tensor cores of 10.x would take 64 rows of both operands from shared memory, several times: 459 KB.
    step = H100.wide_step if shared > MIN_SHARED_BYTES and capability[0] != 10 else H100.wide_step // 2
    tiles = replace(H100, early=capability >= EARLY_FROM, descriptors=described, multiprocessors=multiprocessors)
    return replace(tiles, shared_bytes=shared, wide_step=step)

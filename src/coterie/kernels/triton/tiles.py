"""Tile sizes of all kernels, in one table. Those that were timed on an H100 say so.

The others follow from counting registers, shared memory and bytes in flight there (132 multiprocessors, 64 K registers
and 228 KB of shared memory each), and have yet to be measured.
Knows nothing about kernels' operands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from coterie.kernels.triton.product.tile import (
    FOUR_WEIGHT_GROUPS,
    MAX_PACKED_ROWS,
    MIN_COLUMNS,
    MIN_DOT,
    Q2_GROUP,
    Q6_GROUP,
    CudaCoreTile,
    CudaTable,
    TensorCoreTile,
    TensorTable,
    choose,
    power_of_two,
)

__all__ = ["H100", "MIN_DOT", "CudaCoreTile", "TensorCoreTile", "Tiles", "power_of_two", "tiles_for"]

ANY = 1 << 62  # any number of rows, columns, channels or tokens
Q4_GROUP = 16  # columns per scale where a column (a byte) holds two weights
# Maximum shared memory per program, by capability. Source: CUDA C++ Programming Guide, technical specifications.
SHARED_BYTES = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
MIN_SHARED_BYTES = 99 << 10  # all others: as consumer cards have, 8.6, 8.9 and 12.0
OTHER_BYTES = 1024  # shared memory of a product outside its pipeline stages: scales, partial sums of warps
MIN_TOKENS = 8  # smallest number of tokens in a tensor-core product whose left operand is the weight
LOADED = 4  # float32 activations that a thread loads at once


@dataclass(frozen=True, slots=True)
class Tiles:
    """All choices. Tables hold (upper bound of a size, choice) pairs; the last entry serves every size."""

    few_tokens: int = 4  # up to this many tokens are multiplied in float32 on CUDA cores, more on tensor cores
    # One token, unpacked weights: `one` is keyed by (columns, rows) of the weight, `one_heads`, for the projections to
    # q, k and v, by columns. Measured in whole steps of a 1B and a 7B Llama on an H100.
    one_heads: CudaTable = ((2048, CudaCoreTile(4, 2048, 4)), (ANY, CudaCoreTile(4, 2048, 8, registers=64)))
    one: tuple[tuple[int, int, CudaCoreTile], ...] = (
        (2048, 8192, CudaCoreTile(2, 2048, 4)),
        (2048, 16384, CudaCoreTile(4, 2048, 8)),
        (2048, ANY, CudaCoreTile(2, 2048, 4)),
        (4096, 8192, CudaCoreTile(4, 2048, 4)),
        (4096, ANY, CudaCoreTile(2, 2048, 8)),
        (8192, ANY, CudaCoreTile(2, 1024, 8, registers=64)),
        (ANY, ANY, CudaCoreTile(4, 2048, 8)),
    )
    # One token, packed weights: keyed by (bytes per row, rows), 8 bytes per thread. Chosen by instructions per weight.
    one_packed: tuple[tuple[int, int, CudaCoreTile], ...] = (
        (2048, 4096, CudaCoreTile(4, 512, 2)),
        (1024, ANY, CudaCoreTile(8, 256, 1)),
        (2048, ANY, CudaCoreTile(8, 512, 2)),
        (ANY, ANY, CudaCoreTile(4, 1024, 4)),
    )
    # Small batches, packed weights: keyed by (tokens, bytes per row, rows), with a sum per thread for each row and
    # token. Batches above `packed_tokens` use the general path; 1 disables this one.
    packed_tokens: int = 4
    few_packed: tuple[tuple[int, int, int, CudaCoreTile], ...] = (
        (2, 2048, 4096, CudaCoreTile(4, 512, 2)),
        (2, 2048, ANY, CudaCoreTile(8, 512, 2)),
        (ANY, 2048, ANY, CudaCoreTile(4, 512, 2)),
        (ANY, ANY, ANY, CudaCoreTile(4, 1024, 4)),
    )
    # The same for 6-bit weights, also for one token: keyed by columns (of four weights each), not by bytes. Short rows
    # take a single step.
    six: tuple[tuple[int, int, int, CudaCoreTile], ...] = (
        (ANY, 512, 4096, CudaCoreTile(4, 512, 2)),
        (ANY, 512, ANY, CudaCoreTile(8, 512, 2)),
        (ANY, 1024, ANY, CudaCoreTile(8, 1024, 4)),
        (2, ANY, ANY, CudaCoreTile(4, 1024, 4)),
        (ANY, ANY, ANY, CudaCoreTile(2, 1024, 4)),
    )
    # The general path: rows per program, by rows of the weight. At least four programs per multiprocessor if the weight
    # has enough rows.
    few_rows: tuple[tuple[int, int], ...] = ((2048, 4), (8192, 8), (ANY, 16))
    few_sums: int = 2048  # rows x columns of a program, times up to four tokens: at most 64 accumulators per thread
    few_warps: int = 4
    few_unroll: int = 4  # steps with loads in flight; halved for more than one token, halved again for float32
    # Low-rank updates (LoRA). With at most `low_rank` rows, a program has one row, or there would be too few programs;
    # with at most `low_rank` columns, it has as many rows as two warps load at once.
    low_rank: int = 64
    low_weights: int = 512
    low_warps: int = 2
    # Tensor-core tiles by tokens: narrow ones for batched decode, large ones for prefill.
    many: TensorTable = (
        (16, TensorCoreTile(64, 16, 256, 4, 4)),
        (32, TensorCoreTile(64, 32, 128, 4, 4)),
        (64, TensorCoreTile(128, 64, 64, 4, 4)),
        (ANY, TensorCoreTile(128, 128, 64, 8, 3)),
    )
    # Up to `narrow_tokens` tokens and weights of 16, 8 or 4 bits: tiles of fewer rows, keyed by rows of the weight, in
    # which each warp has a slice of the columns (slices.py). So there are about as many tiles as multiprocessors. They
    # prefetch weights before waiting for the previous launch. Derived by counting: docs/triton.md. 0 disables them.
    narrow_tokens: int = 16
    narrow: TensorTable = ((4096, TensorCoreTile(16, 16, 512, 8, 4)), (ANY, TensorCoreTile(32, 16, 256, 8, 4)))
    narrow_packed: TensorTable = ((4096, TensorCoreTile(16, 16, 512, 8, 4)), (ANY, TensorCoreTile(32, 16, 512, 8, 3)))
    narrow_ahead: bool = True
    # `many` for packed weights, whose columns are bytes: limited by the registers that widening them takes.
    packed: TensorTable = ((16, TensorCoreTile(64, 16, 128, 4, 6)), *many[1:])
    # And for groups with zero points, which take registers too.
    with_zeros: TensorTable = (*packed[:2], (64, TensorCoreTile(128, 64, 64, 8, 4)), *packed[3:])
    # Mixture-of-experts layers, by mean tokens per branch; some branches get twice the mean. Small tiles waste less of
    # each branch's last tile.
    branches: TensorTable = (
        (8, TensorCoreTile(64, 16, 256, 4, 4)),
        (16, TensorCoreTile(64, 32, 128, 4, 4)),
        (256, TensorCoreTile(128, 64, 64, 4, 4)),
        (ANY, TensorCoreTile(128, 128, 64, 8, 3)),
    )
    packed_branches: TensorTable = (
        (8, TensorCoreTile(64, 16, 128, 4, 6)),
        (16, TensorCoreTile(64, 32, 128, 4, 4)),
        (256, TensorCoreTile(128, 64, 64, 8, 4)),
        (ANY, TensorCoreTile(128, 128, 64, 8, 3)),
    )
    # Prefill with unpacked weights has larger tiles. Entries: (relative time of a tile, of a piece of one, tile). The
    # entry with the shortest time over all waves is chosen. Tiles were measured like `one`, pieces were not.
    waves: tuple[tuple[float, float, TensorCoreTile], ...] = (
        (1.0, 1.0, TensorCoreTile(128, 256, 64, 8, 4)),
        (1.0, 0.55, TensorCoreTile(128, 256, 64, 8, 4, 2)),
        (1.0, 0.35, TensorCoreTile(128, 256, 64, 8, 4, 4)),
        (0.55, 0.55, TensorCoreTile(128, 128, 64, 8, 3)),
    )
    # The same where tensor descriptors load weights and tokens. Whole tiles of 256 rows were measured like `one`.
    descriptors: bool = True
    described: tuple[tuple[float, float, TensorCoreTile], ...] = (
        (1.0, 1.0, TensorCoreTile(256, 128, 64, 8, 3, described=True)),
        (1.0, 0.55, TensorCoreTile(256, 128, 64, 8, 3, 2, described=True)),
        (1.0, 0.35, TensorCoreTile(256, 128, 64, 8, 3, 4, described=True)),
        (0.6, 0.6, TensorCoreTile(128, 128, 64, 8, 5, described=True)),
    )
    multiprocessors: int = 132
    # No tensor cores: operands stay in registers.
    many_float32: TensorCoreTile = field(default=TensorCoreTile(64, 32, 32, 4, 3))
    # Low-rank updates of many tokens, possibly in shares (linear_each.py), by mean tokens per sequence. Few rows: up to
    # a mean of `low_mean`, programs of few tokens and two rows on CUDA cores; above, all rows in one tile, so that a
    # token is read once. Few columns: all of them in one step.
    low_mean: int = 8
    low_rows: TensorTable = ((512, TensorCoreTile(64, 16, 256, 4, 4)), (ANY, TensorCoreTile(64, 32, 128, 4, 4)))
    low_columns: TensorTable = ((16, TensorCoreTile(64, 16, 64, 4, 1)), (ANY, TensorCoreTile(64, 64, 64, 4, 1)))
    shared_bytes: int = SHARED_BYTES[(9, 0)]  # limit per program: pipeline stages of products, and rows of pages
    wide_step: int = 64  # positions that attention with wide heads and latent attention read at once
    group: int = 8  # row tiles that share the L2 cache before the next group begins (dots.py, tile_at)
    # Decode attention: (channels, positions per program, warps), whatever the context's length: another span sums in
    # another order, and a token's bits must not depend on the rest of the batch. Measured like `one`; shorter spans are
    # faster at contexts of 512 (32 for 64 channels takes 2 % off a step of 1B), longer ones at 8192.
    spans: tuple[tuple[int, int, int], ...] = ((64, 64, 4), (256, 128, 4), (ANY, 128, 8))
    span_bytes: int = 16384  # bytes of keys that it reads at once
    joined: int = 2048  # values of the spans' partial results that are combined at once
    queries: int = 128  # per tile of prefill attention: tokens x query heads per KV head; fewer for wide heads
    keys: int = 64  # positions that such a tile reads at once; half as many for wide heads
    chunk_warps: int = 4
    chunk_stages: int = 3
    chunk_registers: int | None = None  # limit per thread, for heads of up to 64 channels
    staged: int = 8192  # values of an activation row loaded at once when it is rounded for tensor cores
    staged_warp: int = 512  # of these per warp, with at most 8 warps
    # Whether kernels store their output rounded for the next launch too (staged_ahead.py); else that one rounds it.
    stages_ahead: bool = True
    elements: int = 1024  # that an elementwise program handles at once
    mapping: int = 16  # such programs per multiprocessor, which are all resident
    # Gated delta nets: the largest state of a head that one decode program holds whole, with the norm that follows;
    # state elements per thread; columns per program in prefill, half as many where programs would be few; tokens in
    # flight.
    delta_whole: int = 128 * 128
    delta_numbers: int = 32
    delta_width: int = 8
    delta_stages: int = 3
    conv_channels: int = 256  # per program of their convolution
    conv_tokens: int = 16  # and tokens, where a program has a tile of them
    vocabulary: int = 4096  # logits that the sampler reads at once
    vocabulary_unroll: int = 4  # such steps with loads in flight in the search for the maximum
    vocabulary_search: int = 1024  # logits read at once where each is compared with 16 bounds
    # Programs may begin while the previous launch still runs, and prefetch their weights meanwhile (programmatic
    # dependent launch: capability 9.0 and later).
    early: bool = True
    walk_one: CudaCoreTile = field(default=CudaCoreTile(2, 2048, 4))
    walk_packed: CudaCoreTile = field(default=CudaCoreTile(4, 1024, 4))
    walk_warps: int = 4  # of the persistent kernel (persistent.py), whatever its parts have when launched alone
    walk_programs: int = 4  # limit per multiprocessor; more keep more loads in flight but take longer at barriers
    walk_ahead: int = 1  # units of work whose weights are prefetched before their turn, in steps of one token
    walk_vocabulary: int = 1024  # smaller: with few warps the sampler would need the most registers of all kernels
    walk_search: int = 128

    def few(
        self, rows: int, K: int, tokens: int, group: int, wide: bool, least_rows: int = 1, heads: bool = False,
        several: bool = False,
    ) -> CudaCoreTile:  # fmt: skip
        """Tile for a product of few tokens with a weight [rows, K].

        `group`: columns per scale, 1 if unpacked. `wide`: float32 weight. `least_rows`: rows that must stay in one
        program. `heads`: the projections to q, k and v. `several`: the kernel can treat several tokens as it does one.
        """
        if tokens == 1 and group == 1:
            by_rows = tuple((most, few) for columns, most, few in self.one if K <= columns)
            one = choose(self.one_heads, K) if heads else choose(by_rows, rows)
            most = max(one.rows, least_rows)
            limit = one.registers if most == one.rows and not wide else None
            least = LOADED * 32 * one.warps if most == one.rows else MIN_COLUMNS
            columns = max(one.columns * one.rows // most // (1 + wide), least)
            return replace(one, rows=most, columns=columns, registers=limit)
        several = several and 1 < tokens <= self.packed_tokens and group > 1
        if (tokens == 1 or several) and group != Q2_GROUP and least_rows <= MAX_PACKED_ROWS:
            columns = K // (4 if group == Q6_GROUP else 1 + (group == Q4_GROUP))
            table = self.few_packed if several else tuple([(1, *one) for one in self.one_packed])
            table = self.six if group == Q6_GROUP else table
            one = next(few for most, size, many, few in table if tokens <= most and columns <= size and rows <= many)
            return replace(one, rows=max(one.rows, least_rows), several=several).for_row(columns, group)
        mine = choose(self.few_rows, rows)
        # With more rows of 6 bits, threads would load activations two at a time, not four.
        mine = max(min(mine, MAX_PACKED_ROWS) if group == Q6_GROUP else mine, least_rows)
        # A column of four weights needs four activations per token in registers.
        sums = self.few_sums // 2 if tokens > 1 and group in FOUR_WEIGHT_GROUPS else self.few_sums
        columns = max(sums // mine, group, MIN_COLUMNS)
        warps = self.few_warps * (2 if mine * columns > self.few_sums else 1)
        return CudaCoreTile(mine, columns, warps, max(self.few_unroll // (1 + (tokens > 1)) // (1 + wide), 1))

    def few_by_itself(
        self, rows: int, K: int, tokens: int, group: int, wide: bool, several: bool = False
    ) -> CudaCoreTile:
        """`few` for an unfused product, which may be one half of a low-rank update."""
        few = self.few(rows, K, tokens, group, wide, several=several)
        if K <= self.low_rank:
            columns = max(power_of_two(K), MIN_DOT, group)
            return CudaCoreTile(max(self.low_weights // columns, 1), columns, self.low_warps)
        return CudaCoreTile(1, max(self.few_sums, group), self.few_warps, few.unroll) if rows <= self.low_rank else few

    def for_walk(self) -> Tiles:
        """Tiles for the persistent kernel, whose register use is that of its most demanding part."""
        tiles = replace(self, vocabulary=self.walk_vocabulary, vocabulary_search=self.walk_search, vocabulary_unroll=1)
        tiles = replace(tiles, early=False, delta_whole=self.delta_numbers * 32 * self.walk_warps)
        one, packed = ((ANY, ANY, self.walk_one),), ((ANY, ANY, self.walk_packed),)
        six = ((ANY, ANY, ANY, self.walk_packed),)
        return replace(tiles, one_heads=((ANY, self.walk_one),), one=one, one_packed=packed, six=six, packed_tokens=1)

    def row(self, size: int) -> tuple[int, int]:
        """Values of an activation row that a program stages at once (all of a short row), and its warps."""
        step = min(power_of_two(size), self.staged)
        return step, min(max(step // self.staged_warp, 1), 8)

    def span(self, channels: int) -> tuple[int, int]:
        """Positions that one program of decode attention reads, for heads of this width, and its warps."""
        return next((span, warps) for wide, span, warps in self.spans if channels <= wide)

    def delta_columns(self, values: int) -> int:
        """State columns per program, given those of all heads; fewer where programs per multiprocessor would be few."""
        few = values // self.delta_width < 4 * self.multiprocessors
        return max(self.delta_width // (1 + few), 1)

    def step(self, size: int) -> int:
        """Elements per iteration of a program that walks one row: all of a short row."""
        return min(power_of_two(size), self.elements)

    def of_branches(self, mean: int, group: int, wide: bool) -> TensorCoreTile:
        """Tile for weights of branches with `mean` tokens each; other parameters as in `many_of`."""
        chosen = choose(self.branches if group == 1 else self.packed_branches, mean)
        if wide:
            chosen = replace(self.many_float32, tokens=min(chosen.tokens, self.many_float32.tokens))
        return self.fitted(chosen.for_group(group), group, wide)

    def fitted(self, many: TensorCoreTile, group: int, wide: bool) -> TensorCoreTile:
        """The tile with fewer pipeline stages and then, if need be, fewer columns, so that it fits shared memory."""
        if self.shared_bytes >= SHARED_BYTES[(9, 0)]:  # the size that tiles were chosen for
            return many
        weights = 4 if group in FOUR_WEIGHT_GROUPS else 2 if group == Q4_GROUP else 1  # of a column
        of_row = 4 if wide else 2 if group == 1 else 3 if group == Q6_GROUP else 1
        column_bytes = many.rows * of_row + many.tokens * weights * (4 if wide else 2)
        room = (self.shared_bytes - OTHER_BYTES) // column_bytes
        columns, least = many.columns, max(MIN_DOT, group)
        while columns > room and columns > least:
            columns //= 2
        return replace(many, columns=columns, stages=max(min(many.stages, room // columns + 1), 2))

    def few_in_shares(
        self, rows: int, K: int, tokens: int, sequences: int, group: int, wide: bool
    ) -> CudaCoreTile | None:
        """Tile for weights that each apply to some of the tokens; None where tensor cores multiply these."""
        if tokens <= self.few_tokens:
            return self.few_by_itself(rows, K, tokens, group, wide)
        if rows > self.low_rank or K <= self.low_rank or tokens > self.low_mean * sequences:
            return None
        unroll = max(self.few_unroll // 2 // (1 + wide), 1)
        return CudaCoreTile(2, max(self.few_sums // 2, group), self.few_warps, unroll)

    def many_in_shares(self, rows: int, K: int, tokens: int, sequences: int, group: int, wide: bool) -> TensorCoreTile:
        """The same on tensor cores; other parameters as in `many_of`."""
        mean = tokens // max(sequences, 1)
        if min(rows, K) > self.low_rank:
            return self.of_branches(mean, group, wide)
        if K <= self.low_rank:
            chosen = replace(choose(self.low_columns, mean), columns=max(power_of_two(K), MIN_DOT))
        else:
            chosen = choose(self.low_rows, mean)
            chosen = replace(chosen, rows=max(min(chosen.rows, power_of_two(rows)), MIN_DOT))
        if wide:
            most = self.many_float32
            chosen = replace(chosen, tokens=min(chosen.tokens, most.tokens), columns=min(chosen.columns, most.columns))
        return self.fitted(chosen.for_group(group), group, wide)

    def many_of(
        self, rows: int, tokens: int, group: int, wide: bool, described: bool = False, zeros: bool = False,
        least_rows: int = MIN_DOT, of_head: int = 0,
    ) -> TensorCoreTile:  # fmt: skip
        """Tensor-core tile for a weight of `rows` rows and up to `tokens` tokens.

        `group`: columns per scale, 1 if unpacked. `wide`: float32 weight. `described`: descriptors can load the
        operands. `zeros`: groups have zero points. `least_rows`: rows that must stay in one tile. `of_head`: rows of a
        head, kept together except in narrow tiles.
        """
        narrow = choose(self.narrow if group == 1 else self.narrow_packed, rows)
        if tokens <= self.narrow_tokens and group not in FOUR_WEIGHT_GROUPS and not wide and least_rows <= narrow.rows:
            narrow = replace(narrow, tokens=min(narrow.tokens, max(power_of_two(tokens), MIN_TOKENS)))
            # Bytes of two weights are read twice.
            return self.fitted(narrow, 2 * Q4_GROUP if group == Q4_GROUP else group, False)
        chosen = choose(self.many if group == 1 else self.with_zeros if zeros else self.packed, tokens)
        if chosen is self.many[-1][1] and group == 1 and not wide:

            def cost(way: tuple[float, float, TensorCoreTile]) -> float:
                of_tile, of_piece, many = way
                tiles, pieces = many.waves(-(-rows // many.rows), tokens, self.multiprocessors)
                return tiles * of_tile + pieces * of_piece

            chosen = min(self.described if described and self.descriptors else self.waves, key=cost)[2]
        if wide:
            chosen = replace(self.many_float32, tokens=min(chosen.tokens, self.many_float32.tokens))
        chosen = chosen.for_group(group)
        return self.fitted(chosen.for_heads(of_head, group) if of_head else chosen, group, wide)


H100 = Tiles()
DESCRIBED = 9  # the major capability whose shared memory the `described` tiles were chosen for
EARLY_FROM = (9, 0)  # the first capability with programmatic dependent launch. Source: CUDA C++ Programming Guide


def tiles_for(capability: tuple[int, int], multiprocessors: int) -> Tiles:
    """Tiles for a GPU of this compute capability and number of multiprocessors."""
    described, shared = capability[0] == DESCRIBED, SHARED_BYTES.get(capability, MIN_SHARED_BYTES)
    # On 10.x both operands go through shared memory, and 64 rows would be there several times: 459 KB.
    step = H100.wide_step if shared > MIN_SHARED_BYTES and capability[0] != 10 else H100.wide_step // 2
    tiles = replace(H100, early=capability >= EARLY_FROM, descriptors=described, multiprocessors=multiprocessors)
    return replace(tiles, shared_bytes=shared, wide_step=step)

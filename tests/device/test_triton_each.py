"""Rows in shares on the GPU's kernels: each row as if its share were the whole step, whoever else there is.

Values on odd shapes and every type are among triton_cases.py too, there with tiles that know of no low rank.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.device.interpreted import WIDE, Bucket, call, gpu, inspect, run
from tests.device.mixed_reference import run_mixed
from tests.device.native import empty, optional, random, whole
from tests.device.random_expert import RandomExpert, making, step_of
from tests.device.triton_cases import BF16, F16, F32, Q4, ROUNDED, shares_of, table_of, weight

from coterie.device import Binding, Shared, Variants
from coterie.devices.cpu.bound import Bound, Workspace
from coterie.graph.reference import KvState, Reference
from coterie.kernels import cpu as kernels
from coterie.kernels.triton.product.linear_each import most_tiles
from coterie.kernels.triton.tiles import H100

LOW = replace(WIDE, low_rank=16, low_weights=512)
OF_B = (0, 2, 1)  # whose weights sequences have
SHAPES = {"A": (5, 70), "B": (70, 5), "neither": (21, 70)}


class Products:
    """Weights of a shape, and what kernels make of rows that meet them."""

    def __init__(self, shape, dtype=BF16, count=3, seed=0):
        self.N, self.K = SHAPES[shape]
        rng = np.random.default_rng(seed)
        self.weights = [weight(rng, (self.N, self.K), dtype) for _ in range(count)]

    def plain(self, x, number, bucket, tiles=LOW):
        """All rows by one weight."""
        y = empty(len(x), self.N)
        call("linear", bucket, tiles, **self._ends(x, y), **self.weights[number].operand("weight"))
        return y

    def each(self, x, of_S, lengths, bucket, tiles=LOW):
        """Rows in shares of these lengths, by these weights."""
        y, own = empty(len(x), self.N), [self.weights[number] for number in of_S]
        shares = {"each": table_of(own), "first": shares_of(lengths), "shares": len(lengths)}
        call("linear_each", bucket, tiles, **self._ends(x, y), **own[0].operand("weight"), **shares)
        return y

    def _ends(self, x, y):
        return {"x": x, "y": y, "T": len(x), "N": self.N, "K": self.K, **optional("bias", None)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [4, 16])
@pytest.mark.parametrize("dtype", [BF16, pytest.param(Q4, marks=pytest.mark.long)])
def test_a_row_has_the_bits_of_a_step_of_its_own_weight_in_that_bucket(shape, tokens, dtype):
    """But for products on tensor cores, where it lies elsewhere in a tile, or packed ones of other tiles."""
    products, bucket = Products(shape, dtype), Bucket(tokens, tokens, tokens, 1)
    x, sizes = random(np.random.default_rng(1), 4, products.K), (products.N, products.K, tokens, tokens, 1, False)
    in_shares = replace(LOW, packed_tokens=1, narrow_tokens=0)  # how tokens meet packed weights there, alone otherwise
    alone = [products.plain(x, number, bucket, in_shares) for number in range(3)]
    within = 0 if LOW.few_in_shares(*sizes) else 1e-6
    assert bool(within) == (tokens == 16 and shape != "A")
    for of_S, lengths in (((0, 1, 2), (1, 2, 1)), ((2, 0), (3, 1)), ((1, 2, 1, 0), (1, 1, 1, 1)), ((1,), (4,))):
        number_T = np.repeat(of_S, lengths)
        wanted = np.stack([alone[number][t] for t, number in enumerate(number_T)])
        np.testing.assert_allclose(products.each(x, of_S, lengths, bucket), wanted, rtol=0, atol=within)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [F32, BF16, pytest.param(F16, marks=pytest.mark.long)])
def test_many_rows_are_right_where_ranks_are_low(shape, dtype):
    """Few sequences have the tiles of a prompt, many those of decode; some rows of the bucket are nobody's."""
    products, lengths, of_S = Products(shape, dtype), (1, 19, 3), (2, 0, 1)
    x = random(np.random.default_rng(1), sum(lengths), products.K)
    parts = np.split(x.astype(np.float64), np.cumsum(lengths)[:-1])
    wanted = np.concatenate([part @ products.weights[n].values.T for n, part in zip(of_S, parts, strict=True)])
    for sequences in (3, 32):
        bucket = Bucket(128, sequences, sequences, 1)
        for y, expected in (
            (products.each(x, of_S, lengths, bucket), wanted),
            (products.plain(x, 1, bucket), x @ products.weights[1].values.T),
        ):
            assert np.abs(y - expected).max() <= ROUNDED[dtype] * np.abs(expected).max()


@pytest.mark.parametrize("tokens", [4, 16])
def test_a_weight_of_nans_is_its_own_rows_matter(tokens):
    """Others share tiles and loops with them."""
    products = Products("A")
    products.weights[1].memory[:] = 0xFFFF
    y = products.each(random(np.random.default_rng(1), 4, products.K), (0, 1, 2), (1, 1, 2), Bucket(tokens, 3, 3, 1))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2, 3]]).all()


@pytest.mark.parametrize("bucket", [Bucket(4, 4, 4, 1), Bucket(16, 4, 4, 1)])
def test_a_captured_launch_serves_every_way_to_share_a_step_and_does_nothing_when_a_run_is_over(bucket):
    """Launches are found for one share of one row; what the GPU's rows say comes later."""
    products, N, K = Products("neither"), *SHAPES["neither"]
    x, y = random(np.random.default_rng(1), 4, K), empty(4, N)
    own = products.weights
    each, first = table_of(own), np.zeros(8, np.int32)
    ends = {"x": kernels.address(x), "y": kernels.address(y), **own[0].operand("weight"), **optional("bias", None)}
    how = {"each": kernels.address(each), "first": kernels.address(first), "N": N, "K": K}
    row = kernels.encode("linear_each", whole("linear_each", {**ends, **how, "shares": 1, "T": 1})).reshape(1, -1)
    scratch = torch.zeros(max(gpu.scratch_bytes(row, bucket, WIDE), 16), dtype=torch.uint8)
    on_gpu, words = torch.from_numpy(row.copy()), kernels.OPCODES["linear_each"].words
    launches = gpu.launches(row, on_gpu, 0, bucket, scratch, WIDE)
    for of_S, lengths in (((0, 1, 2), (1, 2, 1)), ((2, 1), (3, 1)), ((1,), (2,))):
        T = sum(lengths)
        each[: len(of_S)], first[: len(lengths) + 1] = [own[n].address for n in of_S], [0, *np.cumsum(lengths)]
        on_gpu[0, words["shares"]], on_gpu[0, words["T"]] = len(lengths), T
        y[:] = np.nan
        for launch in launches:
            launch()
        np.testing.assert_array_equal(y[:T], products.each(x[:T], of_S, lengths, bucket, WIDE))
        assert np.isnan(y[T:]).all()
    y[:], on_gpu[0, words["T"]] = np.nan, 0
    for launch in launches:
        launch()
    assert np.isnan(y).all()


@pytest.mark.parametrize("tile", [16, 64])
def test_grids_have_a_place_for_every_tile_that_there_may_be(tile):
    rng = np.random.default_rng(0)
    for shares, rows in ((1, 5), (4, 4), (7, 100), (33, 64)):
        most = most_tiles(shares, rows, tile)
        assert most <= rows // tile + shares
        for _ in range(50):
            cuts = np.sort(rng.integers(0, rows + 1, shares - 1))
            lengths = np.diff([0, *cuts, rows])
            assert (-(-lengths // tile)).sum() <= most


def test_programs_of_a_change_of_low_rank_are_many_and_their_threads_busy():
    for rank in (8, 16, 64):
        down, up = (H100.few_by_itself(N, K, 4, 1, False) for N, K in ((rank, 4096), (4096, rank)))
        assert down.rows == 1
        assert 4096 // up.rows >= H100.multiprocessors // 2
        assert up.columns == max(rank, 16)
        assert up.rows * up.columns == 8 * 32 * up.warps  # 16 bytes of bfloat16 a thread
        assert 16 * rank // H100.few_in_shares(rank, 4096, 16, 16, 1, False).rows >= 64  # programs of 16 shares
        for N, K in ((rank, 4096), (4096, rank)):
            many = H100.many_in_shares(N, K, 512, 1, 1, False)
            assert min(many.rows, many.tokens, many.columns) >= 16
        assert H100.few_by_itself(4096, 4096, 4, 1, False) == H100.few(4096, 4096, 4, 1, False)


class Mixed:
    """Three random experts of one program and one base, on one device."""

    def __init__(self, make, dtype, rule_set="cache"):
        self.first = make("adapted", (dtype,), rule_set)
        self.experts = [self.first]
        for seed in (1, 2):
            self.experts.append(
                RandomExpert(self.first.device, "adapted", (dtype,), rule_set, seed=seed, align_bytes=16)
            )
        names = self.first.program.weights
        self.places = tuple(i for i, name in enumerate(names) if not name.endswith((".A", ".B")))
        base = {name: self.first.weights[name] for i, name in enumerate(names) if i in self.places}
        self.references = [Reference(self.first.graph, one.weights | base) for one in self.experts]
        self.state = KvState(self.first.graph, self.first.num_blocks, self.first.Z)

    def inspect(self, step, expert_B, tiles):
        """Every stored value of a step by the GPU's kernels."""
        first, others = self.first, self.experts[1:]
        variants = Variants(tuple(one.extent for one in others), tuple(one.offsets for one in others), expert_B)
        shared = Shared(first.extent, self.places)
        binding = Binding(first.extent, first.offsets, first.kv, first.block_bytes, step, shared, variants)
        prepared, bases = first.device._prepare(first.exe, binding, 1)
        bound, sizes = Bound(first.exe, prepared.sizes), prepared.sizes
        bound.put(binding, prepared, bases, Workspace())
        run(bound.rows, Bucket(sizes.T, sizes.B, sizes.R, step.block_tables_BM.shape[1] * first.Z), tiles)
        return bound.stored_values()

    def expect(self, step, expert_B):
        rows = {"tokens": step.tokens_T, "positions": step.positions_T, "sequence": step.sequence_T}
        rows |= {"block_tables": step.block_tables_BM, "rows": step.rows_R}
        return run_mixed(self.references, expert_B, rows, step.sampling, self.state)


def check(make, dtype, bound, tiles=WIDE, rule_set="cache"):
    mixed = Mixed(make, dtype, rule_set)
    prompt = mixed.first.prompt
    for step in (
        step_of((prompt(2), 0), (prompt(1, 2), 0), (prompt(5, 3), 0)),
        *((step_of(([0], 2), ([0], 1), (prompt(5, 4), 5)),) if dtype is not F32 else ()),
        step_of(([0], 3), ([0], 2), ([0], 10)),
    ):
        expected, found = mixed.expect(step, OF_B), mixed.inspect(step, OF_B, tiles)
        assert dtype is not F32 or found["next_tokens"].tolist() == expected["next_tokens"].tolist()
        for name in found.keys() - {"next_tokens"}:
            error = np.abs(found[name] - expected[name]).max()
            assert error <= bound * np.abs(expected[name]).max(), name


def test_a_program_whose_sequences_have_adapters_of_their_own_gives_the_references_values():
    """A ragged prefill of three sequences, one that goes on beside tokens, and a token each."""
    with making() as make:
        check(make, F32, 3e-6, LOW)


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "bound"), [(F32, 3e-6), (BF16, 0.06)])
def test_an_adapter_alone_is_one_share_of_many_tokens(dtype, bound):
    with making() as make:
        expert = make("adapted", (dtype,))
        for step in (step_of((expert.prompt(19), 0)), step_of(([3], 19), *(([n], 0) for n in (5, 7)), ([2, 4], 0))):
            expected, found = expert.expect(step), inspect(expert, step, LOW)
            for name in found.keys() - {"next_tokens"}:
                assert np.abs(found[name] - expected[name]).max() <= bound * np.abs(expected[name]).max(), name


@pytest.mark.long
@pytest.mark.parametrize("tiles", [LOW, WIDE, H100])
@pytest.mark.parametrize("rule_set", ["cache", "none"])
@pytest.mark.parametrize(("dtype", "bound"), [(F32, 3e-6), (BF16, 0.06), (F16, 8e-3)])
def test_of_every_type_and_by_every_tile(dtype, bound, rule_set, tiles):
    with making() as make:
        check(make, dtype, bound, tiles, rule_set)

"""Each kernel for GPUs against float64, on odd shapes and every type; the table in the docs is that of the quick cases.

Knows nothing about programs.
"""

from __future__ import annotations

import re
from functools import partial
from importlib import import_module
from inspect import getsource, signature
from pkgutil import walk_packages

import numpy as np
import pytest
import torch
from tests.device import triton_cases, triton_plain_cases
from tests.device.every_case import LONG, QUICK
from tests.device.interpreted import Bucket, call, gpu
from tests.device.native import attention, empty, ints, random
from tests.device.triton_attention_cases import last_of, pages_of
from tests.device.triton_cases import (
    BF16,
    F16,
    F32,
    FLOATS,
    MX4,
    Q2,
    Q4,
    Q4Z,
    Q8,
    TYPES,
    gate_up,
    linear,
    qkv,
)
from tests.device.triton_plain_cases import elementwise, softcap
from tests.device.triton_table import DOCS, stored_cases
from triton.runtime.interpreter import InterpretedFunction

from coterie.core.dtypes import from_f32, to_f32
from coterie.core.errors import UnsupportedError
from coterie.kernels import cpu as kernels
from coterie.kernels import triton as triton_kernels
from coterie.kernels.triton.launch import KERNELS
from coterie.kernels.triton.persistent import UNIT
from coterie.kernels.triton.rows import Matrix
from coterie.kernels.triton.tiles import H100, TensorCoreTile, Tiles

SHOWN = stored_cases(DOCS.read_text())
LAST_BITS = 2e-7  # by which sums in another order, as another processor's NumPy takes them, may move an error


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_kernel(case):
    """Within its bound, and what the docs show for it is so."""
    error, shown = case.error(), SHOWN[case.name]
    assert error <= case.bound
    assert shown / 2 - LAST_BITS <= error <= 2 * shown + LAST_BITS


@pytest.mark.long
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_kernel_on_larger_shapes(case):
    assert case.error() <= case.bound


CUT = [
    linear("linear_add", BF16, 131, 150, 70, True),
    gate_up(F16, F16, 70, 45, 33, True),
    qkv((BF16,) * 3, 70, 33, 3, 1, 32, True, True, F32),
]


@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("case", CUT, ids=lambda case: case.kernel)
def test_tiles_that_are_left_after_full_waves_are_cut(monkeypatch, case, pieces):
    """On a GPU of three multiprocessors, whose waves are full long before all tiles are dealt out."""
    tiles = Tiles(waves=((1.0, 1.0, TensorCoreTile(32, 64, 32, 4, 2, pieces)),), multiprocessors=3)
    monkeypatch.setattr(triton_cases, "call", partial(call, tiles=tiles))
    assert case.error() <= case.bound


@pytest.mark.parametrize("tokens", [65, 128, 512, 2048])
@pytest.mark.parametrize("rows", [640, 2048, 2560, 11264, 22016])
def test_prefill_takes_the_way_that_is_over_first(rows, tokens):
    chosen = H100.many_of(rows, tokens, 1, False)

    def time(of_tile, of_piece, many):
        tiles, pieces = many.waves(-(-rows // many.rows), tokens, H100.multiprocessors)
        return tiles * of_tile + pieces * of_piece

    assert min(time(*way) for way in H100.waves) == next(time(*way) for way in H100.waves if way[2] == chosen)
    assert H100.many_of(rows, tokens, 32, False).tokens == 128  # packed: they take registers


@pytest.mark.parametrize("tokens", [5, 16, 32, 64, 2048])
def test_a_thread_widens_as_many_packed_weights_as_it_has_registers_for(tokens):
    """More than 128 at once spilled: tests/device/test_triton_compile.py counts the registers."""
    for dtype, weights in ((Q8, 1), (Q4, 2), (Q4Z, 2), (MX4, 2), (Q2, 4)):
        matrix = Matrix.of(dtype, 2048)
        many = H100.many_of(2048, tokens, matrix.group, False, zeros=matrix.has_zeros)
        assert many.rows * many.columns * weights / (32 * many.warps) <= 128


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("K", [2048, 4096, 8192, 11008])
def test_threads_load_one_token_as_widely_as_can_be(K, heads, wide):
    for rows in (2048, 8192, 16384, 128256):
        few = H100.few(rows, K, 1, 1, wide, 2, heads)
        assert few.columns >= 16 // 4 * 32 * few.warps


def test_the_docs_show_each_case_and_no_other():
    assert list(SHOWN) == [case.name for case in QUICK]


def test_the_docs_show_each_kernel_with_each_type():
    """Of its weights where it has a matrix, of norms and pages where it has those; the rest know float32 alone."""
    shown: dict[str, set[str]] = {}
    for case in QUICK:
        shown.setdefault(case.kernel, set()).add(case.dtype)
    assert set(shown) == set(KERNELS) - {"sample"}  # what is drawn is right or wrong: test_triton_sample.py
    for kernel, dtypes in shown.items():
        words = kernels.OPCODES[kernel].words
        norms = ("rms_norm", "layer_norm", "group_norm")
        is_packed_never = (*norms, "causal_conv", "mul_one", "latent_queries", "latent_values")
        has_matrix = kernel not in is_packed_never and {
            "table",
            "weight",
            "wq",
            "gate",
        } & set(words)
        typed = any(word.endswith("_dtype") for word in words)
        assert dtypes >= {dtype.value for dtype in (TYPES if has_matrix else FLOATS if typed else (F32,))}, kernel


def test_kernels_that_are_told_their_unit_look_for_no_other():
    """A program's own number is that of its unit only where each program has one."""
    told = []
    for info in walk_packages(triton_kernels.__path__, f"{triton_kernels.__name__}."):
        of_module = [one for one in vars(import_module(info.name)).values() if isinstance(one, InterpretedFunction)]
        told += [one.fn for one in of_module if [*signature(one.fn).parameters][-1:] == [UNIT]]
    assert len({f"{one.__module__}.{one.__name__}" for one in told}) >= 15
    for one in told:
        assert not re.search(r"program_id|num_programs", getsource(one)), one


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_pages_round_to_nearest_ties_to_even(dtype):
    """Bits on both sides of ties, numbers without an exponent, too large ones, infinite ones and NaN."""
    bits = np.arange(0, 2**32, 2**32 // 4096, dtype=np.uint64)
    ties = (bits[:, None] + np.array([0, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0x18000], np.uint64)) % 2**32
    with np.errstate(over="ignore", invalid="ignore"):
        x = ties.astype(np.uint32).view(np.float32).reshape(1, 64, -1)
    K, C = x.shape[1:]
    pages = pages_of(np.random.default_rng(0), (1,), K, C, 1, dtype)
    at = pages.operands(ints([0]), ints([0]), 1)
    call("kv_append", Bucket(1, 1, 1, 1), k=x, v=x, **at, T=1, K=K, C=C)
    k, v = pages.read(1, 0, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = to_f32(from_f32(x, dtype), dtype)
    np.testing.assert_array_equal(k, expected)
    np.testing.assert_array_equal(v, expected)


@pytest.mark.parametrize("chunks", [(1, 1), (3, 4)])
def test_a_sequence_of_nans_leaves_the_others_of_its_tile_alone(chunks):
    rng = np.random.default_rng(0)
    pages = pages_of(rng, (20, 20), 1, 16, 4, F32)
    pages.write(1, 0, 7, np.full((1, 16), np.nan, np.float32), np.full((1, 16), np.nan, np.float32))
    positions, sequence = last_of((20, 20), chunks)
    T = len(positions)
    y = empty(T, 2, 16)
    operands = pages.operands(positions, sequence, 1)
    sizes = {"T": T, "B": 2, "H": 2, "K": 1, "C": 16}
    call("attention", Bucket(T, 2, T, 20), q=random(rng, T, 2, 16), **operands, y=y, **sizes, scale=0.25, window=0)
    assert np.isnan(y[: chunks[0]]).all()
    assert np.isfinite(y[chunks[0] :]).all()


ALIKE = (Q4,) * 3


@pytest.mark.parametrize(
    ("types", "vectors", "launched"),
    [
        ((Q4Z,) * 3, {}, 1),
        ((Q4Z, Q4Z, Q8), {}, 2),
        ((BF16, Q4, Q4), {}, 2),
        ((Q4, Q4Z, Q4), {}, 3),
        ((Q4, MX4, MX4), {}, 2),
        ((MX4, Q8, Q2), {}, 3),
        (ALIKE, {"bq": F16, "bk": F16, "bv": BF16}, 2),
        (ALIKE, {"bq": F16, "bk": BF16, "bv": F16}, 3),
        (ALIKE, {"q_norm": F32, "k_norm": F32}, 1),
        (ALIKE, {"q_norm": F32, "k_norm": BF16}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("tokens", [1, 16])
def test_neighbours_of_q_k_and_v_that_are_alike_are_one_launch(types, vectors, launched, tokens):
    """Behind the one that stages activations, which all of them meet. A kernel loads biases and norms of one type."""
    words = kernels.OPCODES["norm_qkv_rope_append"].words
    given = {"D": 64, "H": 2, "K": 1, "C": 16, "Z": 4, "block_bytes": 4096, "kv_dtype": kernels.dtype_number(BF16)}
    kinds = {f"w{part}": dtype for part, dtype in zip("qkv", types, strict=True)} | vectors
    given |= {f"{name}_dtype": kernels.dtype_number(dtype) for name, dtype in kinds.items()} | dict.fromkeys(kinds, 64)
    rows = kernels.encode("norm_qkv_rope_append", dict.fromkeys(words, 0) | given).reshape(1, -1)
    bucket = Bucket(tokens, tokens, 1, 256)
    scratch = torch.empty(gpu.scratch_bytes(rows, bucket), dtype=torch.uint8)
    found = gpu.launches(rows, torch.from_numpy(rows), 0, bucket, scratch)
    assert len(found) == launched + (tokens > H100.few_tokens)


@pytest.mark.parametrize("case", [elementwise("add", 3, 1100), softcap(30.0, 2, 1100)], ids=lambda case: case.kernel)
def test_a_few_programs_walk_all_values(monkeypatch, case):
    tiles = Tiles(elements=64, mapping=2, multiprocessors=3)
    monkeypatch.setattr(triton_plain_cases, "call", partial(call, tiles=tiles))
    assert case.error() <= case.bound


def test_capped_logits_of_a_prompt_are_no_more_programs_than_a_gpu_has_room_for():
    """Their rows are those sampled: a program for all values that so many tokens might have would be half a million."""
    rows = kernels.encode("softcap", dict.fromkeys(kernels.OPCODES["softcap"].words, 0) | {"N": 262144}).reshape(1, -1)
    none = torch.empty(0, dtype=torch.uint8)
    (launch,) = gpu.launches(rows, torch.from_numpy(rows), 0, Bucket(2048, 1, 1, 2048), none)
    assert launch.grid == (16 * 132,)


def test_a_row_that_no_kernel_does_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(KERNELS, "latent_values")
    rows = kernels.encode("latent_values", dict.fromkeys(kernels.OPCODES["latent_values"].words, 0)).reshape(1, -1)
    with pytest.raises(UnsupportedError, match=r"none of them does latent_values.*; use --device cpu"):
        gpu.scratch_bytes(rows, Bucket(1, 1, 1, 1))


@pytest.mark.parametrize(("C", "window", "fact"), [(300, -1, "heads of 300 channels"), (64, 0, "before them")])
def test_biases_by_distance_are_refused_where_they_would_be_left_out(C, window, fact):
    words = dict.fromkeys(kernels.OPCODES["relative_attention"].words, 0)
    words |= {"H": 2, "K": 1, "C": C, "Z": 16, "window": window, "bias": 64, "bias_dtype": kernels.dtype_number(BF16)}
    rows = kernels.encode("relative_attention", words).reshape(1, -1)
    for bucket in (Bucket(1, 1, 1, 64), Bucket(32, 2, 2, 64)):
        with pytest.raises(UnsupportedError, match=rf"{fact}.*; use --device cpu"):
            gpu.launches(rows, torch.from_numpy(rows), 0, bucket, torch.zeros(1 << 20, dtype=torch.uint8))


def test_a_token_alone_in_a_bucket_of_one_sequence_is_a_chunk():
    rng = np.random.default_rng(0)
    pages, q, y = pages_of(rng, (300,), 1, 16, 4, BF16), random(rng, 1, 2, 16), empty(1, 2, 16)
    sizes = {"T": 1, "B": 1, "H": 2, "K": 1, "C": 16}
    at = pages.operands(ints([290]), ints([0]), 1)
    call("attention", Bucket(4, 1, 1, 512), q=q, **at, y=y, **sizes, scale=0.25, window=0)
    expected = attention(q, pages, [290], [0], 1, 0.25, 0)
    assert np.abs(y - expected).max() < 2.0**-7 * np.abs(expected).max()


def test_what_is_no_number_stays_so_when_squared():
    x, y = np.array([[np.nan, -3.0, -0.0, 2.0, np.inf, -np.inf]], np.float32), empty(1, 6)
    call("relu_squared", Bucket(1, 1, 1, 1), x=x, y=y, T=1, N=6)
    np.testing.assert_array_equal(y, [[np.nan, 0.0, 0.0, 4.0, np.inf, 0.0]])


def test_more_tokens_in_the_bucket_than_in_the_row_are_left_alone():
    x, y = np.ones((3, 5), np.float32), empty(9, 5)
    call("silu", Bucket(9, 9, 9, 1), x=x, y=y, T=3, N=5)
    assert np.isfinite(y[:3]).all()
    assert np.isnan(y[3:]).all()

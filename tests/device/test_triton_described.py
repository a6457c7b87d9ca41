"""Products by tensor descriptors: walked in tiles, pieces and parts, they are what they should be.

Knows nothing about programs of several rows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.device import triton_cases
from tests.device.interpreted import WIDE, call
from tests.device.triton_cases import BF16, F16, Q4, Q4Z, Q8, gate_up, linear, qkv

from coterie.kernels.triton.product import described
from coterie.kernels.triton.product.descriptor_memory import MAX_PROGRAMS, PROGRAM_BYTES, DescriptorMemory
from coterie.kernels.triton.tiles import TensorCoreTile, tiles_for

# Tiles so small that 4 multiprocessors have several each, and what is left is cut.
SMALL = TensorCoreTile(32, 16, 16, 4, 2, pieces=2, described=True)
WALKED = replace(WIDE, described=((1.0, 1.0, SMALL),), multiprocessors=4)
CASES = [
    *(linear("linear", dtype, T, N, K, T == 70) for dtype, T, N, K in ((BF16, 70, 150, 72), (F16, 130, 33, 8))),
    *(linear("linear_add", dtype, 70, 40, 200, bias) for dtype, bias in ((BF16, True), (F16, False))),
    *(gate_up(dtype, dtype, 70, F, D, F == 45) for dtype, F, D in ((BF16, 45, 72), (F16, 96, 16))),
    *(qkv((BF16,) * 3, 70, D, H, K, C, kv=F16) for D, H, K, C in ((96, 8, 2, 32), (40, 5, 5, 8))),
    qkv((BF16,) * 3, 66, 24, 2, 1, 64, kv=BF16),
    qkv((BF16,) * 3, 66, 24, 2, 1, 64, kv=BF16, rotated=0),
    qkv((BF16, BF16, Q4Z), 66, 24, 2, 1, 32, kv=BF16),  # q and k
    qkv((Q8, BF16, BF16), 66, 24, 2, 1, 32, kv=BF16),
    linear("linear_add", BF16, 70, 40, 200, True, 0.22),
    *(gate_up(BF16, BF16, 70, F, 72, F == 45, form=form) for F, form in ((45, "tanh"), (40, "erf"))),
    gate_up(F16, F16, 70, 45, 16, False, normed=False),
    qkv((BF16,) * 3, 66, 24, 2, 1, 32, normed=True, kv=BF16, offset=1.0),
]
NOT_TAKEN = [
    linear("linear", BF16, 70, 40, 36, True),  # rows of 72 bytes
    linear("linear", Q8, 70, 40, 64, True),
    gate_up(Q8, BF16, 70, 40, 64, False),
    qkv((BF16,) * 3, 70, 96, 2, 1, 24, kv=BF16),  # heads that are padded
    qkv((BF16,) * 3, 70, 96, 2, 1, 32, kv=BF16, rotated=24),  # and that are rotated in part
    qkv((BF16,) * 3, 66, 24, 2, 1, 32, kv=BF16, interleaved=1),
    qkv((F16, Q4, Q4), 66, 24, 2, 1, 32, kv=BF16),  # staged in float32, for types that differ
]


@pytest.fixture
def launched(monkeypatch):
    """Cases with those tiles, and the names of kernels that were launched by descriptors."""
    names, launch = [], described.launch_described

    def remember(call, kernel, *args, **constants):
        names.append(call.name)
        launch(call, kernel, *args, **constants)

    for module in ("linear", "norm_gate_up_silu_mul", "norm_qkv_rope_append"):
        monkeypatch.setattr(f"coterie.kernels.triton.product.{module}.launch_described", remember)
    monkeypatch.setattr(triton_cases, "call", partial(call, tiles=WALKED))
    return names


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_descriptors_copy_is_multiplied(case, launched):
    assert case.error() <= case.bound
    assert set(launched) == {case.kernel}


@pytest.mark.parametrize("case", NOT_TAKEN, ids=lambda case: case.name)
def test_what_no_descriptor_takes_goes_another_way(case, launched):
    assert case.error() <= case.bound
    assert not launched


def test_a_walk_has_all_tiles_and_pieces_once():
    """As many programs as multiprocessors, or as there are units; pieces of whole heads."""
    assert SMALL.programs(5, 70, 4) == 24 + 2
    assert SMALL.for_heads(16, 1).pieces == 2
    assert SMALL.for_heads(32, 1).pieces == 1


def test_tiles_that_descriptors_copy_are_for_gpus_with_as_much_shared_memory():
    """They, and wgmma, came with capability 9; nothing is known of later ones."""
    chosen = {capability: tiles_for((capability, 0), 132).many_of(2048, 2048, 1, False, True) for capability in (8, 9)}
    assert chosen[9].described
    assert not chosen[8].described
    assert not tiles_for((9, 0), 132).many_of(2048, 64, 1, False, True).described  # a batch's decode


@given(st.lists(st.integers(1, 5), min_size=2, max_size=300))
def test_places_of_launches_that_may_overlap_are_apart(programs):
    """Of the launch in use, of those that wait, which fit on the GPU together, and of the one that begins."""
    memory, multiprocessors = DescriptorMemory(), 5
    spans = []
    for count in programs:
        place = memory.take(count, multiprocessors, torch.device("cpu"))
        assert place.numel() == count * PROGRAM_BYTES
        spans.append((place.data_ptr(), place.data_ptr() + place.numel()))
        waiting = 0
        for (start, end), others in zip(reversed(spans[:-1]), reversed(programs[: len(spans) - 1]), strict=True):
            assert end <= spans[-1][0] or spans[-1][1] <= start
            waiting += others
            if waiting > MAX_PROGRAMS * multiprocessors:
                break

"""What attention of few tokens asks for of the weights behind it: whole lines of what is read first, up to a bound."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="the extra cuda is not installed: triton is missing")

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton.behind import PIECE_BYTES, asked_behind

D, F = 2048, 5632


def row(name, **given):
    return kernels.encode(name, dict.fromkeys(kernels.OPCODES[name].words, 0) | given)


def rows(dtype=DType.BF16):
    kind = kernels.dtype_number(dtype)
    out = row("linear_add", weight_dtype=kind, N=D, K=D)
    gate_up = row("norm_gate_up_silu_mul", gate_dtype=kind, up_dtype=kind, F=F, D=D)
    down = row("linear_add", weight_dtype=kind, N=D, K=F)
    return np.stack([out, gate_up, down])


def word(name, operand, distance):
    return distance * kernels.ROW_WORDS + kernels.OPCODES[name].words[operand]


def test_what_comes_first_is_asked_for_whole_and_the_rest_shares_what_is_left():
    out, gate, up = asked_behind(rows(), 20 << 20)
    assert out == (word("linear_add", "weight", 1), D * D * 2 // PIECE_BYTES)
    assert gate[0] == word("norm_gate_up_silu_mul", "gate", 2)
    assert up[0] == word("norm_gate_up_silu_mul", "up", 2)
    assert gate[1] == up[1] == ((20 << 20) - D * D * 2) // 2 // PIECE_BYTES


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32, DType.Q8, DType.Q4])
@pytest.mark.parametrize("most_bytes", [0, PIECE_BYTES - 1, PIECE_BYTES, 1 << 20, 20 << 20, 1 << 40])
def test_no_more_is_asked_for_than_told_nor_beyond_a_weight(dtype, most_bytes):
    asked = asked_behind(rows(dtype), most_bytes)
    assert sum(pieces for _, pieces in asked) * PIECE_BYTES <= most_bytes
    sizes = {1: D * dtype.row_bytes(D), 2: F * dtype.row_bytes(D), 3: D * dtype.row_bytes(F)}
    for at, pieces in asked:
        assert 0 < pieces * PIECE_BYTES <= sizes[at // kernels.ROW_WORDS]


def test_nothing_is_asked_for_where_nothing_follows_or_no_weight_does():
    assert asked_behind(None, 1 << 40) == asked_behind(rows()[:0], 1 << 40) == ()
    assert asked_behind(np.stack([row("sample", V=7)]), 1 << 40) == ()

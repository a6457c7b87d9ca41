"""Neighbouring products of one x: the bits of products that are launched, or staged, each by itself.

Knows nothing about streams.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.device.interpreted import WIDE, Bucket, gpu, run
from tests.device.native import empty, optional, random, whole
from tests.device.triton_cases import weight

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton.launch import launches

F32, BF16, Q4, Q8 = DType.F32, DType.BF16, DType.Q4, DType.Q8
K = 40


def products(T, counts, dtypes, biased=()):
    """Rows of products of one x, what they store in one memory, and memory to keep."""
    rng = np.random.default_rng(0)
    x, stored, rows, held = random(rng, T, K), empty(T * sum(counts) + 64), [], []
    at = -kernels.address(stored) % 16 // 4
    found = []
    for i, (count, dtype) in enumerate(zip(counts, dtypes, strict=True)):
        y, w, b = stored[at : at + T * count], weight(rng, (count, K), dtype), weight(rng, (count,), BF16)
        at += -(-T * count // 4) * 4
        given = {"x": x, "y": y, **w.operand("weight"), **optional("bias", b if i in biased else None)}
        given = {name: kernels.address(v) if isinstance(v, np.ndarray) else v for name, v in given.items()}
        rows.append(kernels.encode("linear", whole("linear", given | {"T": T, "N": count, "K": K})))
        found.append(y)
        held += [w, b]
    return np.stack(rows), found, (x, stored, held)


def names(rows, bucket):
    scratch = torch.zeros(gpu.scratch_bytes(rows, bucket, WIDE), dtype=torch.uint8)
    copied = torch.from_numpy(rows.copy())
    return [[one.kernel.__name__ for one in launches(rows, copied, i, bucket, scratch, WIDE)] for i in range(len(rows))]


@pytest.mark.parametrize("T", [pytest.param(0, marks=pytest.mark.long), 1, 3, 7])
@pytest.mark.parametrize(
    ("counts", "dtypes", "biased"),
    [
        ((9, 2, 5), (BF16,) * 3, (0, 1, 2)),
        pytest.param((3, 21, 4, 1, 6, 2), (BF16,) * 6, (), marks=pytest.mark.long),
        pytest.param((5, 5, 5, 5), (Q4, Q4, BF16, BF16), (0, 1), marks=pytest.mark.long),
        pytest.param((5, 5, 5), (F32, F32, Q8), (0, 2), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_neighbours_have_the_bits_of_products_by_themselves(T, counts, dtypes, biased):
    rows, found, held = products(T, counts, dtypes, biased)
    run(rows, Bucket(max(T, 1), 1, 1, 1))
    together = [y.copy() for y in found]
    for y in found:
        y[:] = np.nan
    for row in rows:
        run(row[None], Bucket(max(T, 1), 1, 1, 1))
    for mine, alone in zip(together, found, strict=True):
        np.testing.assert_array_equal(mine, alone)
        assert np.isfinite(alone).all()
    assert held


def test_how_many_launches_neighbours_are():
    """Up to four rows a launch of few tokens; of more, one staging for all whose activations are rounded alike."""
    rows, _, held = products(7, (3, 21, 4, 1, 6, 2), (BF16,) * 6)
    assert list(map(len, names(rows, Bucket(1, 1, 1, 1)))) == [1, 0, 0, 0, 1, 0]
    assert [one.count("_stage") for one in names(rows, Bucket(7, 1, 1, 1))] == [1, 0, 0, 0, 0, 0]
    mixed, _, also = products(7, (5, 5, 5, 5), (BF16, Q4, F32, BF16), (1,))
    assert list(map(len, names(mixed, Bucket(1, 1, 1, 1)))) == [1, 1, 1, 1]
    assert [one.count("_stage") for one in names(mixed, Bucket(7, 1, 1, 1))] == [1, 0, 1, 1]
    assert held
    assert also


@pytest.mark.parametrize("word", ["x", "K", "scale"])
def test_products_of_something_else_are_no_neighbours(word):
    rows, _, held = products(7, (5, 5), (BF16, BF16))
    at = kernels.OPCODES["linear"].words[word]
    rows[1][at] += {"x": 16, "K": -4, "scale": 1}[word]
    assert list(map(len, names(rows, Bucket(1, 1, 1, 1)))) == [1, 1]
    same_x = word == "scale"  # what is rounded is the same
    assert [one.count("_stage") for one in names(rows, Bucket(7, 1, 1, 1))] == [1, int(not same_x)]
    assert held


def test_two_that_store_in_one_place_are_launched_one_after_the_other():
    rows, _, held = products(7, (5, 5), (BF16, BF16))
    y = kernels.OPCODES["linear"].words["y"]
    rows[1][y] = rows[0][y] + 16
    assert list(map(len, names(rows, Bucket(1, 1, 1, 1)))) == [1, 1]
    assert held

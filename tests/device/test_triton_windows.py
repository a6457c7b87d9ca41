"""Attention of a token alone, with a window: programs for the spans that it may touch.

Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.device.interpreted import WIDE, Bucket, gpu, run
from tests.device.native import attention, empty, ints, random
from tests.device.triton_attention_cases import pages_of
from tests.device.triton_cases import BF16, EXACT, F32, weight

from coterie.kernels import cpu as kernels
from coterie.kernels.triton.attention import attention as of_attention

SPAN = WIDE.span(16)[0]
H, K, C, Z = 4, 2, 16, 16


def row_of(window, positions, dtype=F32):
    """A row that attends with one token a sequence, where it stores, and what it should."""
    rng, T = np.random.default_rng(0), len(positions)
    pages = pages_of(rng, [position + 1 for position in positions], K, C, Z, dtype)
    q, y, sinks = random(rng, T, H, C), empty(T, H, C), weight(rng, (H,), BF16, 1.0, 3.0)
    given = pages.operands(ints(positions), ints(range(T)), 1) | sinks.operand("sinks")
    kept = [q, y, sinks, pages, *given.values()]
    given |= {"q": q, "y": y, "T": T, "B": T, "H": H, "K": K, "C": C, "scale": 0.25, "window": window, "cap": 0.0}
    given |= {"growth": 0.0, "every": 1}
    given = {name: kernels.address(one) if isinstance(one, np.ndarray) else one for name, one in given.items()}
    wanted = attention(q, pages, positions, range(T), 1, 0.25, window, sinks=sinks.values)
    return kernels.encode("attention", given).reshape(1, -1), y, wanted, kept


def grids(rows, bucket):
    scratch = torch.zeros(gpu.scratch_bytes(rows, bucket, WIDE), dtype=torch.uint8)
    return [one.grid for one in gpu.launches(rows, torch.from_numpy(rows.copy()), 0, bucket, scratch, WIDE)]


@pytest.mark.parametrize("window", [*(pytest.param(w, marks=pytest.mark.long) for w in (2, SPAN + 1)), SPAN + 2])
def test_a_window_has_programs_for_the_spans_that_it_may_touch(window, monkeypatch):
    """At the first and last place of a span, and where there is less context than window; to the bit as with all."""
    positions = [0, 2 * SPAN - 1, 3 * SPAN, 3 * SPAN + 1]
    rows, y, wanted, kept = row_of(window, positions)
    T, spans = len(positions), 2 + (window > SPAN + 1)
    bucket = Bucket(T, T, T, 4 * SPAN)
    assert grids(rows, bucket) == [(T, K, spans), (T, H)]
    assert grids(rows, replace(bucket, context=2 * SPAN)) == [(T, K, 2), (T, H)]
    run(rows, bucket)
    assert np.abs(y - wanted).max() <= EXACT * np.abs(wanted).max()
    found = y.copy()
    monkeypatch.setattr(of_attention, "_spans", lambda call: (4, False))
    run(rows, bucket)
    np.testing.assert_array_equal(y, found)
    assert kept

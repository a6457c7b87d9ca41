"""Words that a kernel copies, interpreted: every one, none beside them, and nothing that is no word.

Knows nothing about GPUs: that they cross beside a large copy, tests/device/test_gpu.py shows on one.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="the extra cuda is not installed: triton is missing")
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

from coterie.kernels.triton.words import Mover


@pytest.mark.parametrize("words", [1, 4, 1023, 1024, 1025, 5000])
def test_words_are_copied_and_nothing_beside_them(words):
    src = torch.randint(0, 256, (4 * words + 16,), dtype=torch.uint8)
    dst, move = torch.zeros(4 * words + 16, dtype=torch.uint8), Mover()
    for _ in range(2):
        dst.zero_()
        move(dst[8 : 4 * words + 8], src[4 : 4 * words + 4])
        assert torch.equal(dst[8 : 4 * words + 8], src[4 : 4 * words + 4])
        assert not dst[:8].any()
        assert not dst[4 * words + 8 :].any()


@pytest.mark.parametrize(("to", "of"), [(8, 12), (6, 6)])
def test_what_are_no_words_of_one_size_is_refused(to, of):
    with pytest.raises(ValueError, match="4 bytes each"):
        Mover()(torch.zeros(to, dtype=torch.uint8), torch.zeros(of, dtype=torch.uint8))

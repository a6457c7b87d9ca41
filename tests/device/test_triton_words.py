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
    dst, move = torch.zeros(4 * words + 16, dtype=torch.uint8), Mover().move
    for _ in range(2):
        dst.zero_()
        move([(dst[8 : 4 * words + 8], src[4 : 4 * words + 4])])
        assert torch.equal(dst[8 : 4 * words + 8], src[4 : 4 * words + 4])
        assert not dst[:8].any()
        assert not dst[4 * words + 8 :].any()


@pytest.mark.parametrize("words", [(1024, 1), (1, 1024), (1025, 2048), (0, 5), (5, 0), (0, 0), (7, 1500, 3), (3, 0, 0)])
def test_several_blocks_are_copied_and_nothing_beside_them(words):
    """Two of them by one launch."""
    src = torch.randint(0, 256, (4 * sum(words) + 64,), dtype=torch.uint8)
    dst, wanted, pairs, at = torch.zeros(2 * len(src), dtype=torch.uint8), torch.zeros(2 * len(src)), [], 4
    wanted = wanted.to(torch.uint8)
    for count in words:
        to, of = slice(2 * at, 2 * at + 4 * count), slice(at, at + 4 * count)
        wanted[to] = src[of]
        pairs.append((dst[to], src[of]))
        at += 4 * count + 8
    mover = Mover()
    for _ in range(2):
        dst.zero_()
        mover.move(pairs)
        assert torch.equal(dst, wanted)


@pytest.mark.parametrize(("to", "of"), [(8, 12), (6, 6)])
def test_what_are_no_words_of_one_size_is_refused(to, of):
    with pytest.raises(ValueError, match="4 bytes each"):
        Mover().move([(torch.zeros(to, dtype=torch.uint8), torch.zeros(of, dtype=torch.uint8))])


def test_pieces_are_gathered_and_nothing_beside_them():
    """As many as a prompt has tokens, of no word to more than all programs copy at once."""
    sizes = [4, 0, 4096, 12, 8 * 4096 + 4, 3 * 8 * 4096]
    src = torch.randint(0, 256, (sum(sizes) + 64,), dtype=torch.uint8)
    dst, wanted = torch.zeros(2 * sum(sizes), dtype=torch.uint8), torch.zeros(2 * sum(sizes), dtype=torch.uint8)
    pieces, at, to = [], 4, 8
    for size in sizes:
        pieces.append((dst.data_ptr() + to, src.data_ptr() + at, size))
        wanted[to : to + size] = src[at : at + size]
        at, to = at + size, to + size + 20
    mover = Mover()
    for _ in range(2):
        dst.zero_()
        mover.gather(torch.tensor(pieces, dtype=torch.int64).view(-1).view(torch.uint8))
        assert torch.equal(dst, wanted)
    with pytest.raises(ValueError, match="each has three"):
        mover.gather(torch.zeros(20, dtype=torch.uint8))
    mover.gather(torch.zeros(0, dtype=torch.uint8))

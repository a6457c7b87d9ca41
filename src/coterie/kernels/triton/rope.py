"""rope: rotate the halves of each head by position * inv_freq.

Knows nothing about queries or keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import along, integer, pointer, real
from coterie.kernels.triton.rows import Call, places
from coterie.kernels.triton.tiles import power_of_two

X, POSITIONS, INV_FREQ, Y, T, SCALE = places("rope", "x", "positions", "inv_freq", "y", "T", "scale")


@triton.jit
def rotation(positions, inv_freq, scale):
    """Cosine and sine of positions * inv_freq, the product rounded to float32 as everywhere, times scale."""
    angle = positions.to(tl.float32) * inv_freq
    return tl.cos(angle) * scale, tl.sin(angle) * scale


@triton.jit
def _rope(row, H: tl.constexpr, C: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, unit=None):
    t = along(unit, 0)
    if t < integer(row, T):
        i = tl.arange(0, HALF)
        position = tl.load(pointer(row, POSITIONS, tl.int32) + t)
        inv_freq = tl.load(pointer(row, INV_FREQ, tl.float32) + i, mask=i < C // 2, other=0.0)
        cosine, sine = rotation(position, inv_freq, real(row, SCALE).to(tl.float32))
        h = tl.arange(0, HEADS)
        at = (t.to(tl.int64) * H + h)[:, None] * C + i[None, :]
        mask = (h < H)[:, None] & (i < C // 2)[None, :]
        x = pointer(row, X, tl.float32)
        y = pointer(row, Y, tl.float32)
        a = tl.load(x + at, mask=mask, other=0.0)
        b = tl.load(x + at + C // 2, mask=mask, other=0.0)
        tl.store(y + at, a * cosine[None, :] - b * sine[None, :], mask=mask)
        tl.store(y + at + C // 2, b * cosine[None, :] + a * sine[None, :], mask=mask)


def launch(call: Call) -> None:
    """A program for a token, all its heads by the same angles."""
    H, C = call.integer("H"), call.integer("C")
    call.launch(_rope, (call.bucket.tokens,), call.row, H=H, C=C, HALF=power_of_two(C // 2), HEADS=power_of_two(H))

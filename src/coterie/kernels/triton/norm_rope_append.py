"""norm_rope_append: q and k normed, each head or all of a token together, and rotated; q is stored, k and v to pages.

Knows nothing about where q, k and v come from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import along, integer, narrow, pointer, real
from coterie.kernels.triton.pages import SEQUENCE, Pages, block_of, page_at
from coterie.kernels.triton.rope import rotation
from coterie.kernels.triton.rows import Call, places
from coterie.kernels.triton.tiles import power_of_two

Q_IN, Q_NORM, Q_EPS, K_IN, K_NORM, K_EPS, V = places(
    "norm_rope_append", "q_in", "q_norm", "q_eps", "k_in", "k_norm", "k_eps", "v"
)
INV_FREQ, SCALE, PAGES, Q, T, OFFSET = places("norm_rope_append", "inv_freq", "scale", "positions", "q", "T", "offset")


@triton.jit
def _turned(
    x,
    norm,
    eps,
    offset,
    cosine,
    sine,
    H: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """First and second channels [HEADS, HALF] of a token's heads x, normed WIDTH at a time and turned."""
    h, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    mask = (h < H) & (i < C // 2)
    a = tl.load(x + h * C + i, mask=mask, other=0.0)
    b = tl.load(x + h * C + C // 2 + i, mask=mask, other=0.0)
    squares = tl.sum(a * a + b * b, axis=1)
    if WIDTH != C:
        squares = tl.sum(squares, axis=0)[None]
    at = (h * C + i) % WIDTH
    factor = (1.0 / tl.sqrt(squares / WIDTH + eps))[:, None]
    a = a * factor * (tl.load(norm + at, mask=mask, other=0.0).to(tl.float32) + offset)
    b = b * factor * (tl.load(norm + at + C // 2, mask=mask, other=0.0).to(tl.float32) + offset)
    return a * cosine - b * sine, b * cosine + a * sine


@triton.jit
def _queries(
    row, t, cosine, sine, offset, TYPE: tl.constexpr, WIDTH: tl.constexpr, H: tl.constexpr, C: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    h, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    mask = (h < H) & (i < C // 2)
    start = t.to(tl.int64) * (H * C)
    x, norm = pointer(row, Q_IN, tl.float32) + start, pointer(row, Q_NORM, TYPE)
    a, b = _turned(x, norm, real(row, Q_EPS).to(tl.float32), offset, cosine, sine, H, C, WIDTH, HEADS, HALF)
    y = pointer(row, Q, tl.float32) + start + h * C + i
    tl.store(y, a, mask=mask)
    tl.store(y + C // 2, b, mask=mask)


@triton.jit
def _keys_and_values(
    row, t, position, cosine, sine, offset, TYPE: tl.constexpr, WIDTH: tl.constexpr, KV_TYPE: tl.constexpr,
    K: tl.constexpr, C: tl.constexpr, Z: tl.constexpr, BLOCK_BYTES: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    h, i = tl.arange(0, HEADS), tl.arange(0, HALF)[None, :]
    mask = (h < K)[:, None] & (i < C // 2)
    start = t.to(tl.int64) * (K * C)
    x, norm = pointer(row, K_IN, tl.float32) + start, pointer(row, K_NORM, TYPE)
    a, b = _turned(x, norm, real(row, K_EPS).to(tl.float32), offset, cosine, sine, K, C, WIDTH, HEADS, HALF)
    sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + t)
    block = block_of(row, PAGES, sequence, position, True, Z)
    keys = page_at(row, PAGES, block, position, 0, h, KV_TYPE, K, C, Z, BLOCK_BYTES)[:, None] + i
    tl.store(keys, narrow(a, KV_TYPE), mask=mask)
    tl.store(keys + C // 2, narrow(b, KV_TYPE), mask=mask)
    v = pointer(row, V, tl.float32) + start + h[:, None] * C + i
    values = page_at(row, PAGES, block, position, 1, h, KV_TYPE, K, C, Z, BLOCK_BYTES)[:, None] + i
    tl.store(values, narrow(tl.load(v, mask=mask, other=0.0), KV_TYPE), mask=mask)
    tl.store(values + C // 2, narrow(tl.load(v + C // 2, mask=mask, other=0.0), KV_TYPE), mask=mask)


@triton.jit
def _norm_rope_append(
    row,
    Q_TYPE: tl.constexpr,
    K_TYPE: tl.constexpr,
    Q_WIDTH: tl.constexpr,
    K_WIDTH: tl.constexpr,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    unit=None,
):
    t = along(unit, 0)
    if t < integer(row, T):
        i = tl.arange(0, HALF)[None, :]
        position = tl.load(pointer(row, PAGES, tl.int32) + t)
        inv_freq = tl.load(pointer(row, INV_FREQ, tl.float32) + i, mask=i < C // 2, other=0.0)
        cosine, sine = rotation(position, inv_freq, real(row, SCALE).to(tl.float32))
        offset = real(row, OFFSET).to(tl.float32)
        if along(unit, 1) == 0:
            _queries(row, t, cosine, sine, offset, Q_TYPE, Q_WIDTH, H, C, HEADS, HALF)
        else:
            _keys_and_values(
                row, t, position, cosine, sine, offset, K_TYPE, K_WIDTH, KV_TYPE, K, C, Z, BLOCK_BYTES, KV_HEADS, HALF
            )  # fmt: skip


def launch(call: Call) -> None:
    """For each token a program with its queries and one with its keys and values."""
    pages, H = Pages.of(call), call.integer("H")
    norms = {"Q_TYPE": call.type("q_norm"), "K_TYPE": call.type("k_norm")}
    widths = {"Q_WIDTH": call.integer("q_width"), "K_WIDTH": call.integer("k_width"), "H": H}
    tile = {"HEADS": power_of_two(H), "KV_HEADS": power_of_two(pages.K), "HALF": power_of_two(pages.C // 2)}
    grid = (call.bucket.tokens, 2)
    call.launch(_norm_rope_append, grid, call.row, **norms, **widths, **pages.constants(), **tile)

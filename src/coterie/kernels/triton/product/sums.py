"""Partial sums that threads keep of their own columns, for several rows, and their reduction.

Knows nothing about what is added.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED


@triton.jit
def appended(elements, one):
    """The tuple with one more element."""
    elements += (one,)
    return elements


@triton.jit
def no_sums(N: tl.constexpr, STEP: tl.constexpr):
    """Zeroed partial sums [STEP] of each of N rows."""
    sums = ()
    for _r in tl.static_range(N):
        sums = appended(sums, tl.zeros([STEP], tl.float32))
    return sums


@triton.jit
def row_totals(sums):
    """[1, N] totals of partial sums."""
    return stacked(totals(sums), len(sums))[None, :]


@triton.jit
def stacked(totals, N: tl.constexpr):
    """The first N scalars as one tensor."""
    y = tl.zeros([N], tl.float32)
    for r in tl.static_range(N):
        y = tl.where(tl.arange(0, N) == r, totals[r], y)
    return y


@triton.jit
def totals(sums):
    """Totals of up to five tensors [STEP], in one reduction: separate ones would synchronise all threads each time."""
    totals = ()
    if INTERPRETED or len(sums) == 1:
        for i in tl.static_range(len(sums)):
            totals = appended(totals, tl.sum(sums[i], axis=0))
    elif len(sums) == 2:
        totals = tl.reduce(sums, 0, _add_2)
    elif len(sums) == 3:
        totals = tl.reduce(sums, 0, _add_3)
    elif len(sums) == 4:
        totals = tl.reduce(sums, 0, _add_4)
    else:
        totals = tl.reduce(sums, 0, _add_5)
    return totals


@triton.jit
def _add_2(a, b, p, q):
    return a + p, b + q


@triton.jit
def _add_3(a, b, c, p, q, r):
    return a + p, b + q, c + r


@triton.jit
def _add_4(a, b, c, d, p, q, r, s):
    return a + p, b + q, c + r, d + s


@triton.jit
def _add_5(a, b, c, d, e, p, q, r, s, t):
    return a + p, b + q, c + r, d + s, e + t


@triton.jit
def all_totals(sums):
    """[N] totals of partial sums, N a power of two: reduced at once, as columns of one tensor."""
    return tl.sum(_side_by_side(sums), axis=0)


@triton.jit
def _side_by_side(sums):
    """[.., N] of N tensors, in order."""
    if len(sums) == 1:
        y = sums[0][:, None]
    else:
        even, odd = (), ()
        for i in tl.static_range(len(sums) // 2):
            even = appended(even, sums[2 * i])
            odd = appended(odd, sums[2 * i + 1])
        first = _side_by_side(even)
        y = tl.reshape(tl.join(first, _side_by_side(odd)), [first.shape[0], len(sums)])
    return y

"""Which positions of its sequence a token sees: those before it, within a window, or within one that reaches both ways.

Knows nothing about how they are attended to.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_seen(position, window):
    """The first position that a token sees."""
    return tl.where(window > 0, tl.maximum(position - window + 1, 0), 0)


@triton.jit
def _own_position(sequence_at, t, sequence, last, tokens, here):
    """Where tokens stand whose whole text, up to position `last`, is in the step: the text's last token there is as far
    behind them as that.
    """
    inside, outside = t, tl.minimum(t + last + 1, tokens)
    for _ in range(31):  # halves an interval of at most so many bits
        middle = (inside + outside) // 2
        same = tl.load(sequence_at + middle, mask=here, other=-1) == sequence
        open = here & (outside - inside > 1)
        inside, outside = tl.where(open & same, middle, inside), tl.where(open & (same == 0), middle, outside)
    return last - (inside - t)


@triton.jit
def seen_of(window, sequence_at, t, sequence_M, position_M, tokens, here, BOTH: tl.constexpr):
    """The first and the last position that tokens see, whose own one is `position_M`.

    BOTH: a window below 0 reaches as far behind a token as before it, and `position_M` is the last of its text.
    """
    low_M = first_seen(position_M, window)
    if BOTH:
        own_M = _own_position(sequence_at, t, sequence_M, position_M, tokens.to(tl.int32), here)
        reach = -window.to(tl.int32)
        low_M = tl.maximum(own_M - reach + 1, 0).to(low_M.dtype)
        position_M = tl.minimum(position_M, own_M + reach - 1)
    return low_M, position_M

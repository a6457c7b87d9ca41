"""Which positions a token sees (all up to its own, a window of these, or a window to both sides), and distance biases.

Knows nothing about how they are attended to.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer
from coterie.kernels.triton.rows import operand_words

BIASED = "relative_attention"  # whose first operands are those of attention
TABLE, BUCKETS, REACH, HEADS = operand_words(BIASED, "bias", "buckets", "reach", "H")


@triton.jit
def first_seen(position, window):
    """The first position that a token sees."""
    return tl.where(window > 0, tl.maximum(position - window + 1, 0), 0)


@triton.jit
def own_position(sequence_at, t, sequence, last, tokens, here):
    """Positions of tokens whose whole text, up to position `last`, is in the step.

    A position is `last` less the distance to the text's last token, found by bisection over the tokens' sequences.
    """
    inside, outside = t, tl.minimum(t + last + 1, tokens)
    for _ in range(31):  # bisection of an interval of up to 31 bits
        middle = (inside + outside) // 2
        same = tl.load(sequence_at + middle, mask=here, other=-1) == sequence
        open = here & (outside - inside > 1)
        inside, outside = tl.where(open & same, middle, inside), tl.where(open & (same == 0), middle, outside)
    return last - (inside - t)


@triton.jit
def seen_of(window, sequence_at, t, sequence_M, position_M, tokens, here, BOTH: tl.constexpr):
    """The first and the last position that each token sees; `position_M` is its own.

    BOTH: a negative window reaches -window - 1 positions to either side, and `position_M` is the last of the token's
    text.
    """
    low_M = first_seen(position_M, window)
    if BOTH:
        own_M = own_position(sequence_at, t, sequence_M, position_M, tokens.to(tl.int32), here)
        reach = -window.to(tl.int32)
        low_M = tl.maximum(own_M - reach + 1, 0).to(low_M.dtype)
        position_M = tl.minimum(position_M, own_M + reach - 1)
    return low_M, position_M


@triton.jit
def near_of(row, sequence_at, t, sequence_M, last_M, tokens, here, head_M, BIAS: tl.constexpr):
    """The first argument of bias_of for tokens t.

    Tensors only: Triton functions cannot return a tuple that contains None.
    """
    own_M = own_position(sequence_at, t, sequence_M, last_M, tokens.to(tl.int32), here)
    biases_M, buckets = pointer(row, TABLE, BIAS) + head_M, pointer(row, BUCKETS, tl.float32)
    return own_M, biases_M, buckets, integer(row, REACH), integer(row, HEADS)


@triton.jit
def bias_of(near, j, SLOPES: tl.constexpr):
    """Biases added to the scores of keys j.

    `near`: query positions, pointers to their heads' biases in the table's first row, buckets of distances, the largest
    distance in these, and the table's row length. SLOPES: the table is one row of slopes (ALiBi).
    """
    own_M, biases_M, buckets, reach, heads = near
    behind = j[None, :] - own_M[:, None]
    if SLOPES:
        bias = -tl.load(biases_M)[:, None].to(tl.float32) * tl.abs(behind).to(tl.float32)
    else:
        bucket = tl.load(buckets + tl.minimum(tl.maximum(behind, -reach), reach) + reach).to(tl.int32)
        bias = tl.load(biases_M[:, None] + bucket * heads).to(tl.float32)
    return bias

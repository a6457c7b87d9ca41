"""What happens on the GPU between two steps of a run: sampled tokens are kept, checked for an end and fed back.

    launches   step 0   feed   step 1   feed   step 2   feed ...     all of them queued at once
    a row ended in step 1:                ^ sets T and R of every row to 0, so that later launches do nothing
    the host wrote STOP in step 1:        ^ the same

So a run of several steps ends early without the host's attention; the number of finished steps is read at the end.
This is what csrc/feed.h does for threads. Knows nothing about what the steps compute.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from coterie.kernels.cpu import FEED
from coterie.kernels.triton.arithmetic import integer, pointer
from coterie.kernels.triton.bucket import stops_of
from coterie.kernels.triton.rows import Launch

__all__ = ["STATE_WORDS", "feed_launch", "stops_of"]

STEPS, DRAWN, ROWS_AT, TOKENS, POSITIONS = (
    tl.constexpr(FEED[name]) for name in ("steps", "drawn", "rows", "tokens", "positions")
)
ENDS, FIRST_END, KEPT, T, R = (tl.constexpr(FEED[name]) for name in ("ends", "first_end", "kept", "T", "R"))
# Words of a run's state: steps done, 1 once it has ended, 1 to request its end.
DONE, ENDED, STOP = (tl.constexpr(i) for i in range(3))
STATE_WORDS = 3
FEED_STEP = 256  # rows, tokens or words per iteration; never timed


@triton.jit
def end_step(feed, state, rows, stops, STOPS: tl.constexpr, STEP: tl.constexpr):
    """Keep the tokens of a step; then end the run, or feed them back. Runs in one program."""
    done = tl.load(state + DONE)
    if tl.load(state + ENDED) == 0:
        sampled = integer(feed, R)
        # Another stream may write this word at any time. An atomic is done by one thread, and the others wait for its
        # result; with plain loads warps could differ, and half of the program would end the run while the other fed it.
        ended = (tl.atomic_or(state + STOP, 0) != 0).to(tl.int32)
        for first in tl.range(0, sampled, STEP):
            r = first + tl.arange(0, STEP)
            mask = r < sampled
            token = tl.load(pointer(feed, DRAWN, tl.int32) + r, mask=mask, other=0)
            tl.store(pointer(feed, KEPT, tl.int32) + done * sampled + r, token, mask=mask)
            begin = tl.load(pointer(feed, FIRST_END, tl.int32) + r, mask=mask, other=0)
            end = tl.load(pointer(feed, FIRST_END, tl.int32) + r + 1, mask=mask, other=0)
            ended += tl.sum((token < 0).to(tl.int32), axis=0)
            for e in tl.range(0, tl.max(end - begin, axis=0)):
                one = tl.load(pointer(feed, ENDS, tl.int32) + begin + e, mask=begin + e < end, other=-1)
                ended += tl.sum((mask & (one == token)).to(tl.int32), axis=0)
        tl.store(state + DONE, done + 1)
        if ended > 0:
            tl.store(state + ENDED, 1)
            for first in tl.range(0, STOPS, STEP):
                i = first + tl.arange(0, STEP)
                word = tl.load(stops + i, mask=i < STOPS, other=0)
                tl.store(rows + word, tl.zeros([STEP], tl.int64), mask=i < STOPS)
        elif done + 1 < integer(feed, STEPS):
            for first in tl.range(0, sampled, STEP):
                r = first + tl.arange(0, STEP)
                token = tl.load(pointer(feed, DRAWN, tl.int32) + r, mask=r < sampled, other=0)
                at = tl.load(pointer(feed, ROWS_AT, tl.int32) + r, mask=r < sampled, other=0)
                tl.store(pointer(feed, TOKENS, tl.int32) + at, token, mask=r < sampled)
            for first in tl.range(0, integer(feed, T), STEP):
                t = first + tl.arange(0, STEP)
                mask = t < integer(feed, T)
                at = pointer(feed, POSITIONS, tl.int32) + t
                tl.store(at, tl.load(at, mask=mask, other=0) + 1, mask=mask)


def feed_launch(feed: torch.Tensor, state: torch.Tensor, rows: torch.Tensor, stops: torch.Tensor) -> Launch:
    """The launch that ends a step, to follow the launches of its rows.

    feed: a word per name of FEED, addresses on the GPU. state: int32, 0 before the first step; the number of finished
    steps, whether the run has ended, and a word that another stream sets to 1 to end it after its current step. stops:
    `stops_of` the rows; after a run that ended this way, T and R must be written again.
    """
    return Launch(end_step, (1,), (feed, state, rows, stops), {"STOPS": stops.numel(), "STEP": FEED_STEP})

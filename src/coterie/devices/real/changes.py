"""Encodes penalties and biases for the CPU's sampler (csrc/changes.h), with room for the tokens a run will draw.

    repetition presence frequency | known capacity | ids[capacity] | times[capacity] | bias[capacity]

Knows nothing about requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coterie.device import I32
from coterie.graph.sampling import Changes
from coterie.kernels.cpu import I64

SETTING = 5  # index of the word in a settings row that holds the address of its block of changes, or 0
KNOWN, CAPACITY, WORDS = 3, 4, 5  # indices of header words, and the header's length


def encode_changes(changes: Changes, steps: int) -> I64:
    """A new block with `changes.later_tokens` counted in, and room for the tokens of all steps but the last."""
    known = len(changes.ids_N)
    capacity = known + len(changes.later_tokens) + steps - 1
    block = np.zeros(WORDS + -(-3 * capacity // 2), np.int64)
    block.view(np.float64)[:KNOWN] = changes.repetition, changes.presence, changes.frequency
    block[KNOWN], block[CAPACITY] = known, capacity
    ids, times, bias = _lists(block)
    ids[:known], times[:known], bias[:known] = changes.ids_N, changes.times_N, changes.bias_N
    for token in changes.later_tokens:
        note(block, token)
    return block


def ids_of(block: I64) -> I32:
    """The token ids listed so far."""
    return _lists(block)[0][: block[KNOWN]]


def note(block: I64, token: int) -> None:
    """Count a token that was drawn. Python equivalent of what csrc/changes.h does between steps."""
    ids, times, _ = _lists(block)
    found, place = np.flatnonzero(ids_of(block) == token), int(block[KNOWN])
    if len(found):
        place = int(found[0])
    else:
        ids[place] = token
        block[KNOWN] += 1
    times[place] = max(times[place], 0) + 1


def _lists(block: I64) -> tuple[I32, I32, npt.NDArray[np.float32]]:
    """Views of a block's ids, counts and biases."""
    capacity, lists = int(block[CAPACITY]), block[WORDS:].view(np.int32)
    ids, times, bias = (lists[i * capacity : (i + 1) * capacity] for i in range(3))
    return ids, times, bias.view(np.float32)

"""The CPU's native kernels in the place of Triton's, on a GPU that is none."""

from __future__ import annotations

import ctypes

import numpy as np

from coterie.core.errors import UnsupportedError
from coterie.kernels.cpu import FEED, Team


class NativeKernels:
    """The CPU's kernels on rows that are on the lazy GPU, whose addresses are the host's."""

    def __init__(self):
        self._team = Team(1)
        self.rows_found = 0

    def scratch_bytes(self, host_rows, bucket):
        return 16

    def row(self, host_rows, rows, index, bucket, scratch):
        self.rows_found += 1
        one = rows.numpy()[index : index + 1]
        return [lambda: self._team.run(one)]

    def feed(self, feed, state, rows, stops):
        words = feed.numpy(), state.numpy(), rows.numpy().reshape(-1), stops.numpy()
        return lambda: feed_back(*words)

    def plan(self, host_rows, rows, bucket, scratch):
        if bucket.tokens > 4:
            raise UnsupportedError("kernels for tests", "products of many tokens are launched", "decode fewer")
        return NativePlan(self._team, rows)


class NativePlan:
    """All rows by the CPU's team, step after step, and none of it twice."""

    def __init__(self, team, rows):
        self._team, self._rows, self.words = team, rows.numpy(), np.zeros(2, np.int64)

    def walk(self, words, feed, state, stops, multiprocessors):
        fixed = feed.numpy(), state.numpy(), self._rows.reshape(-1), stops.numpy()

        def walk():
            while not state[1] and state[0] < feed[FEED["steps"]]:
                self._team.run(self._rows)
                feed_back(*fixed)

        return walk


def feed_back(feed, state, rows, stops):
    """kernels/triton/feed.py in plain words."""
    if state[1]:
        return
    word = {name: int(feed[i]) for name, i in FEED.items()}
    T, R = word["T"], word["R"]
    drawn, at = _i32(word["drawn"], R), _i32(word["rows"], R)
    firsts, done = _i32(word["first_end"], R + 1), int(state[0])
    _i32(word["kept"], (done + 1) * R)[done * R :] = drawn
    ends = _i32(word["ends"], int(firsts[-1]))
    ended = any(int(drawn[r]) in ends[firsts[r] : firsts[r + 1]] or drawn[r] < 0 for r in range(R))
    state[0] = done + 1
    if ended or state[2]:
        state[1] = 1
        rows[stops] = 0
    elif done + 1 < word["steps"]:
        _i32(word["tokens"], T)[at] = drawn
        _i32(word["positions"], T)[:] += 1


def _i32(address, count):
    memory = (ctypes.c_int32 * count).from_address(address)
    return np.frombuffer(memory, np.int32) if count else np.zeros(0, np.int32)

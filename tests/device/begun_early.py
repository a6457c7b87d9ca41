"""Launches that begin while those before them still run, interpreted: what may they touch before they wait?

Triton's interpreter runs launches one after another, so one that reads too early finds what it wants all the same. Here
the addresses that a program loads before its `wait_for_previous` are held against all that launches stored since one
last began behind a finished one; and a program that stores before it waits, or never waits, is a fault by itself.

    with begun_early() as launches:     launches.early: names of those that began early, launches.faults: sentences

Knows nothing about kernels.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from tests.device.interpreted import looking
from triton.runtime import interpreter

from coterie.kernels.triton.arithmetic import EARLY

FUNCTION = interpreter.InterpretedFunction


def _elements(pointers, mask):
    """The addresses that a load or a store touches, and the bytes of each element."""
    taken = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
    return pointers.data[taken].astype(np.int64), max(pointers.get_element_ty().primitive_bitwidth // 8, 1)


def _ranges(touched):
    """[start, end) of bytes, in order and apart, of (addresses, bytes of each)."""
    pieces = [(first, first + size) for starts, size in touched for first in np.unique(starts).tolist()]
    ranges = []
    for start, end in sorted(pieces):
        if ranges and start <= ranges[-1][1]:
            ranges[-1][1] = max(ranges[-1][1], end)
        else:
            ranges.append([start, end])
    return np.array(ranges, np.int64).reshape(-1, 2)


def _all_of(handle):
    """A mask that leaves nothing out."""
    return SimpleNamespace(data=np.ones_like(handle.data, dtype=bool))


class Launches:
    """Watches launches in the order in which they are made."""

    def __init__(self):
        self.early, self.faults = [], []
        self._unfinished = []  # what launches store that may still run when the next one begins
        self._stored, self._running, self._waited = [], None, True

    def begin(self, name, early):
        """The next launch; one that isn't early begins when all before it are over."""
        if not early:
            self._unfinished = []
        else:
            self.early.append(name)
        self._running, self._early, self._stored = name, early, []
        self._before = _ranges(self._unfinished)
        self._waited = True

    def begin_program(self):
        """The next program of the launch."""
        self.end_program()
        self._waited = not self._early

    def end_program(self):
        """A program is over; no launch may be over before those that it did not wait for."""
        if self._running is not None and not self._waited:
            self._fault("does not wait")

    def end(self):
        """The launch is over."""
        self.end_program()
        self._unfinished += self._stored
        self._running = None

    def wait(self):
        """A program waits for all launches before its own."""
        self._waited = True

    def loads(self, pointers, mask):
        """A program is about to load."""
        if self._running is None or self._waited:
            return
        starts, size = _elements(pointers, mask)
        first = np.searchsorted(self._before[:, 1], starts, side="right")  # the first range that ends behind a start
        begins = np.append(self._before[:, 0], np.iinfo(np.int64).max)[first]
        if (begins < starts + size).any():
            self._fault("loads what a launch before it stores, and has not waited")

    def stores(self, pointers, mask):
        """A program is about to store."""
        if self._running is None:
            return
        if not self._waited:
            self._fault("stores, and has not waited")
        self._stored.append(_elements(pointers, mask))

    def _fault(self, what):
        sentence = f"{self._running} {what}"
        if sentence not in self.faults:
            self.faults.append(sentence)


@contextmanager
def begun_early():
    """Watch all launches inside; gives the Launches."""
    launches, run, call = Launches(), FUNCTION.run, FUNCTION.__call__

    def watched_run(self, *args, grid, warmup, **kwargs):
        launches.begin(self.fn.__name__, kwargs.get("WHEN") == EARLY.value)
        run(self, *args, grid=grid, warmup=warmup, **kwargs)
        launches.end()

    def watched_call(self, *args, **kwargs):
        if (
            self.fn.__name__ == "wait_for_previous" and (*args, *kwargs.values())[0] == EARLY.value
        ):  # else it is no wait
            launches.wait()
        return call(self, *args, **kwargs)

    FUNCTION.run, FUNCTION.__call__ = watched_run, watched_call
    looks = {
        "set_grid_idx": lambda *_: launches.begin_program(),
        "create_masked_load": lambda pointers, mask, *_: launches.loads(pointers, mask),
        "create_masked_store": lambda pointers, _, mask, *__: launches.stores(pointers, mask),
        "create_atomic_rmw": lambda _, pointers, __, mask, *___: launches.stores(pointers, mask),
        "create_atomic_cas": lambda pointers, compared, *_: launches.stores(pointers, _all_of(compared)),
    }
    try:
        with looking(looks):
            yield launches
    finally:
        FUNCTION.run, FUNCTION.__call__ = run, call

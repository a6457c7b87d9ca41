"""Programs that wait for each other, interpreted: a thread for each program of a cooperative launch, one at a time.

Triton's interpreter runs programs one after another; the first that waits for another would wait for ever. Here they
take turns: at each atomic, and now and then at a load or a store, a seed decides which program goes on. So it shows
what a barrier must order: whether a program may see less than all that was stored before they met, or more.
It cannot show what a cache of a GPU keeps.

    with in_turns(seed):            launches with launch_cooperative_grid=True take turns, all others are as always
        kernel[(programs,)](..., launch_cooperative_grid=True)

Knows nothing about kernels.
"""

from __future__ import annotations

import inspect
import random
import threading
from contextlib import contextmanager

from tests.device.interpreted import looking
from triton.runtime import interpreter

BUILDER = interpreter.interpreter_builder
MEMORY = ("create_load", "create_store", "create_masked_load", "create_masked_store")
ATOMICS = ("create_atomic_rmw", "create_atomic_cas")


class StuckError(Exception):
    """Programs wait for what no program will do."""


class Turns:
    """Runs programs in an order that a seed decides. `eager`: how likely a load or a store hands over.

    `at_atomic` is called with their number before each atomic, by whoever's turn it is.
    """

    def __init__(self, seed=0, eager=0.02, most=200_000, at_atomic=None):
        self._random, self._eager, self._most, self._at_atomic = random.Random(seed), eager, most, at_atomic
        self.atomics = 0

    def run(self, grid, program):
        """Run a program for each place of a grid. Raises what the first one raised, StuckError after `most` atomics."""
        BUILDER.set_grid_dim(*grid, *[1] * (3 - len(grid)))
        self._left = list(range(grid[0]))
        self._gates = [threading.Semaphore(0) for _ in self._left]
        self._mine, self._error, first = threading.local(), None, self.atomics
        self._end = first + self._most
        threads = [threading.Thread(target=self._thread, args=(x, program)) for x in self._left]
        for thread in threads:
            thread.start()
        self._go(self._random.choice(self._left))
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def at_memory(self):
        """A load or a store is about to be done."""
        if self._random.random() < self._eager:
            self._hand_over()

    def at_atomic(self):
        """An atomic is about to be done."""
        if self._at_atomic is not None:
            self._at_atomic(self.atomics)
        self.atomics += 1
        if self.atomics > self._end:
            raise StuckError(f"{self._most} atomics in one launch")
        self._hand_over()

    def _thread(self, x, program):
        self._mine.x = x
        self._gates[x].acquire()
        try:
            if self._error is None:
                self._resume(x)
                program()
        except Exception as error:
            self._error = self._error or error
        self._left.remove(x)
        if self._left:
            self._go(self._random.choice(self._left))

    def _hand_over(self):
        x, following = self._mine.x, self._random.choice(self._left)
        if following != x:
            self._go(following)
            self._gates[x].acquire()
            if self._error is not None:
                raise StuckError("another program failed")
            self._resume(x)

    def _go(self, x):
        self._gates[x].release()

    def _resume(self, x):
        BUILDER.set_grid_idx(x, 0, 0)


@contextmanager
def in_turns(seed=0, **options):
    """Let programs of cooperative launches take turns; gives the Turns."""
    turns = Turns(seed, **options)
    run, active = interpreter.InterpretedFunction.run, []

    def cooperative(self, *args, grid, warmup, launch_cooperative_grid=False, **kwargs):
        if warmup or not launch_cooperative_grid:
            return run(self, *args, grid=grid, warmup=warmup, **kwargs)
        fn = self.rewrite()
        given = inspect.getcallargs(fn, *args, **{name: kwargs[name] for name in kwargs if name in self.arg_names})
        fixed = {name for name, kind in fn.__annotations__.items() if "constexpr" in str(kind)}
        given = {name: one if name in fixed else interpreter._implicit_cvt(one) for name, one in given.items()}
        scope = interpreter._patch_lang(fn)
        active.append(True)
        try:
            return turns.run(grid, lambda: fn(**given))
        finally:
            active.pop()
            scope.restore()

    looks = dict.fromkeys(MEMORY, lambda *_: active and turns.at_memory())
    looks |= dict.fromkeys(ATOMICS, lambda *_: active and turns.at_atomic())
    interpreter.InterpretedFunction.run = cooperative
    try:
        with looking(looks):
            yield turns
    finally:
        interpreter.InterpretedFunction.run = run

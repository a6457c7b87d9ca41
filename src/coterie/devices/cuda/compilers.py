"""Many kernels compiled at once, beside whatever else goes on: who waits for a step's comes before what may be needed.

    ask(wanted)          -> a future each      urgent ones first; no more are given away than there are processes
    (first miss)         -> starts compiler.py, which compiles into Triton's cache on disk
    (later, the launch)  -> finds them there

Where everything was compiled before, nothing is started. Any thread may ask.
Knows nothing about launches or steps.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import IO

from coterie.devices.cuda.compiler import Answer
from coterie.kernels.triton.compile_ahead import Wanted, is_kept, wanted_by
from coterie.spec.this_machine import allowed_cpus

WORTH_IT = 3  # kernels: to start the processes takes as long as to compile two or three
MAX_S = 180.0  # that a step waits for them
ENDED = "the compiler's processes have ended"


class AtOnce:
    """What a step's kernels wait for when it is met first: those that were not compiled are, all at once."""

    def __init__(self, compilers: Compilers) -> None:
        self._compilers, self._known = compilers, set[Wanted]()

    def __call__(self, launches: Iterable[object]) -> None:
        """Compile what is not there. Where that cannot be, whoever launches compiles, one kernel after another."""
        with suppress(Exception):  # it is only about time
            asked = [one for one in wanted_by(launches) if one not in self._known]
            keys = {one.key(self._compilers.capability): one for one in asked}
            missing = [one for key, one in keys.items() if not is_kept(key, one)]
            if len(missing) >= WORTH_IT:
                wait(self._compilers.ask(missing, urgent=True), MAX_S)
            self._known.update(asked)


class Compilers:
    """Processes that compile for a GPU of a capability, started when there is something to compile."""

    def __init__(self, capability: tuple[int, int], processes: int | None = None) -> None:
        self.capability, self.processes = capability, processes or int(allowed_cpus()[0])
        self._lock = threading.Lock()
        self._asked: dict[Wanted, Future[Answer]] = {}
        self._waiting: tuple[deque[Wanted], deque[Wanted]] = deque(), deque()  # urgent ones, and others
        self._under_way: dict[int, Wanted] = {}
        self._number = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, wanted: Iterable[Wanted], urgent: bool = False) -> list[Future[Answer]]:
        """Futures that say how each ended: True, it was compiled; False, it was there; or what went wrong."""
        found = []
        with self._lock:
            for one in wanted:
                known = self._asked.get(one)
                if known is None:
                    known = self._asked[one] = Future()
                    self._waiting[not urgent].append(one)
                elif urgent and one in self._waiting[1]:
                    self._waiting[1].remove(one)
                    self._waiting[0].append(one)
                found.append(known)
            self._hand_out()
        return found

    def close(self) -> None:
        """End the processes; who still waits hears that they have ended. May be called again."""
        with self._lock:
            self._closed = True
            child = self._child
            self._give_up()
        if child is not None:
            if child.stdin is not None:
                with suppress(OSError):
                    child.stdin.close()  # by which it ends, and so does who listens
            child.wait()

    def _hand_out(self) -> None:
        """Give away as much as there are processes for."""
        while len(self._under_way) < self.processes and any(self._waiting):
            asks = self._started()
            if asks is None:
                self._give_up()
                return
            one = (self._waiting[0] or self._waiting[1]).popleft()
            self._number += 1
            self._under_way[self._number] = one
            try:
                pickle.dump((self._number, one), asks)
                asks.flush()
            except OSError:
                self._give_up()

    def _started(self) -> IO[bytes] | None:
        """Where to ask; None where nobody can be asked."""
        if self._closed:
            return None
        if self._child is None:
            major, minor = self.capability
            command = [sys.executable, "-m", "coterie.devices.cuda.compiler", f"{major}.{minor}", str(self.processes)]
            pipe = subprocess.PIPE
            try:
                child = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=_environment())
            except OSError:
                return None
            self._child = child
            threading.Thread(target=self._listen, args=(child.stdout,), daemon=True, name="compilers").start()
        return self._child.stdin

    def _listen(self, answers: IO[bytes]) -> None:
        """Hear how each ended, until there is no more to hear."""
        with answers, suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                number, answer = pickle.load(answers)
                with self._lock:
                    one = self._under_way.pop(number, None)
                    future = self._asked.get(one) if one is not None else None
                    self._hand_out()
                    if future is not None and not future.done():  # else whoever gave up has told it
                        future.set_result(answer)
        with self._lock:
            self._give_up()

    def _give_up(self) -> None:
        """Nothing more will be compiled here: whoever launches does it."""
        self._closed = True
        for some in self._waiting:
            some.clear()
        self._under_way.clear()
        for future in self._asked.values():
            if not future.done():
                future.set_result(ENDED)


def _environment() -> dict[str, str]:
    """Kernels are compiled there, never interpreted, and no GPU is looked for."""
    found = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {**os.environ, **found}

"""Compiles many kernels at once, in the background; kernels that a step waits for come before those that may be needed.

    ask(wanted)          -> a future per kernel    urgent ones first; at most one in progress per process
    (first miss)         -> starts compiler.py, which compiles into Triton's disk cache
    (later, the launch)  -> finds them there

If everything was compiled before, no process is started. Any thread may ask.
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
from coterie.kernels.triton.compile_ahead import Wanted, is_cached, wanted_by
from coterie.spec.this_machine import allowed_cpus

MIN_PARALLEL = 3  # kernels: starting the processes takes as long as compiling two or three
MAX_S = 180.0  # longest time that a step waits for its kernels
ENDED = "the compiler's processes have ended"


class StepCompiler:
    """Called with the launches of a new step: compiles its missing kernels in parallel, and waits for them.

    Fewer than MIN_PARALLEL are left to their launches.
    """

    def __init__(self, compilers: Compilers) -> None:
        self._compilers, self._known = compilers, set[Wanted]()

    def __call__(self, launches: Iterable[object]) -> None:
        """Compile missing kernels. If that fails, the launches compile them, one after another."""
        with suppress(Exception):  # a failure costs only time
            asked = [one for one in wanted_by(launches) if one not in self._known]
            keys = {one.key(self._compilers.capability): one for one in asked}
            missing = [one for key, one in keys.items() if not is_cached(key, one)]
            if len(missing) >= MIN_PARALLEL:
                wait(self._compilers.ask(missing, urgent=True), MAX_S)
            self._known.update(asked)


class Compilers:
    """Processes that compile for GPUs of a capability, started when there is something to compile."""

    def __init__(self, capability: tuple[int, int], processes: int | None = None) -> None:
        self.capability, self.processes = capability, processes or int(allowed_cpus()[0])
        self._lock = threading.Lock()
        self._asked: dict[Wanted, Future[Answer]] = {}
        self._waiting: tuple[deque[Wanted], deque[Wanted]] = deque(), deque()  # urgent, and others
        self._in_progress: dict[int, Wanted] = {}
        self._number = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, wanted: Iterable[Wanted], urgent: bool = False) -> list[Future[Answer]]:
        """A future per kernel with its result: True if it was compiled, False if it existed, or what went wrong."""
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
            self._dispatch()
        return found

    def close(self) -> None:
        """End the processes; pending futures say that they have ended. May be called again."""
        with self._lock:
            self._closed = True
            child = self._child
            self._give_up()
        if child is not None:
            if child.stdin is not None:
                with suppress(OSError):
                    child.stdin.close()  # this ends it, and then the listening thread
            child.wait()

    def _dispatch(self) -> None:
        """Send as many kernels as there are idle processes."""
        while len(self._in_progress) < self.processes and any(self._waiting):
            asks = self._started()
            if asks is None:
                self._give_up()
                return
            one = (self._waiting[0] or self._waiting[1]).popleft()
            self._number += 1
            self._in_progress[self._number] = one
            try:
                pickle.dump((self._number, one), asks)
                asks.flush()
            except OSError:
                self._give_up()

    def _started(self) -> IO[bytes] | None:
        """The stream to send kernels to, starting the processes if need be; None if that is impossible."""
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
        """Receive results until the stream ends."""
        with answers, suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                number, answer = pickle.load(answers)
                with self._lock:
                    one = self._in_progress.pop(number, None)
                    future = self._asked.get(one) if one is not None else None
                    self._dispatch()
                    if future is not None and not future.done():  # else _give_up has resolved it
                        future.set_result(answer)
        with self._lock:
            self._give_up()

    def _give_up(self) -> None:
        """Compile nothing more here: launches will compile."""
        self._closed = True
        for some in self._waiting:
            some.clear()
        self._in_progress.clear()
        for future in self._asked.values():
            if not future.done():
                future.set_result(ENDED)


def _environment() -> dict[str, str]:
    """Without the interpreter, so that kernels are compiled, and with all GPUs hidden."""
    found = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {**os.environ, **found}

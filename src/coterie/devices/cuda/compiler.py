"""Triton's compiler in separate processes, without a GPU: python -m coterie.devices.cuda.compiler 9.0 16

    in    pickled (number, Wanted) pairs, until the stream is closed
    out   pickled (number, True: compiled | False: existed already | an error's text), in order of completion

This process imports PyTorch and Triton once and then forks, so that its children can compile at once. It ends when its
parent does, together with its children.
Knows nothing about what is compiled, or why.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from threading import Lock, Thread
from time import sleep
from typing import BinaryIO

from coterie.kernels.triton import compile_ahead
from coterie.kernels.triton.compile_ahead import Wanted

Answer = bool | str
LOOK_S = 0.5  # interval at which a child checks that its parent is alive


def compiled(wanted: Wanted) -> Answer:
    """Compile one kernel, unless it exists already."""
    try:
        return wanted.compile()
    except Exception as error:  # affects one kernel: its launch will raise the same, and say where
        return f"{wanted.name}: {str(error).strip() or repr(error)}"


class _Answers:
    """Writes results, one at a time."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._lock = out, Lock()

    def of(self, number: int, future: Future[Answer]) -> None:
        """Write one kernel's result; the reader may be gone."""
        if future.cancelled():
            return
        error = future.exception()
        answer = future.result() if error is None else f"the compiler's process ended: {error}"
        with self._lock:
            try:
                pickle.dump((number, answer), self._out)
                self._out.flush()
            except OSError:
                return


def _end_with(parent: int) -> None:
    """Make this process end when its parent does, however that ends: nothing waits for what it compiles."""

    def look() -> None:
        while os.getppid() == parent:
            sleep(LOOK_S)
        os._exit(0)

    Thread(target=look, daemon=True).start()


def serve(asked: BinaryIO, out: BinaryIO, processes: int) -> None:
    """Compile what is requested, in this many processes, until the input is closed."""
    answers, context = _Answers(out), multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _end_with, (os.getpid(),)) as pool:
        try:
            while True:
                number, wanted = pickle.load(asked)
                pool.submit(compiled, wanted).add_done_callback(partial(answers.of, number))
        except EOFError:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()  # nothing waits for what they compile


def main(arguments: Sequence[str]) -> None:
    """Arguments: the capability, such as 9.0, and the number of processes."""
    capability, processes = arguments
    major, _, minor = capability.partition(".")
    for told in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C and a lost terminal concern only the parent
        signal.signal(told, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # compilers' own output must not mix with results
    compile_ahead.settle_keys()
    compile_ahead.compile_for((int(major), int(minor)))
    serve(sys.stdin.buffer, out, int(processes))


if __name__ == "__main__":
    main(sys.argv[1:])

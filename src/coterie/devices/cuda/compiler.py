"""Triton's compiler in processes of its own, which have no GPU: python -m coterie.devices.cuda.compiler 9.0 16

    in    a pickled (number, Wanted), and more, until it is closed
    out   a pickled (number, True: it was compiled | False: it was there | what went wrong), in the order of their ends

This process imports PyTorch and Triton once and then forks, so the others begin to compile at once. It ends when who
started it does, and takes them with it.
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
LOOK_S = 0.5  # so often a process looks whether the one that forked it is there


def compiled(wanted: Wanted) -> Answer:
    """Compile one kernel, unless it is there."""
    try:
        return wanted.compile()
    except Exception as error:  # of one kernel: whoever launches it meets the same, and says where
        return f"{wanted.name}: {str(error).strip() or repr(error)}"


class _Answers:
    """Says how each ended, whole answers one after another."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._lock = out, Lock()

    def of(self, number: int, future: Future[Answer]) -> None:
        """That of one kernel; nobody may be there any more to hear it."""
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
    """Let this process end when the one that forked it does, however that ends: nobody waits for what it compiles."""

    def look() -> None:
        while os.getppid() == parent:
            sleep(LOOK_S)
        os._exit(0)

    Thread(target=look, daemon=True).start()


def serve(asked: BinaryIO, out: BinaryIO, processes: int) -> None:
    """Compile what is asked for, in so many processes, until there is no more to be asked."""
    answers, context = _Answers(out), multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _end_with, (os.getpid(),)) as pool:
        try:
            while True:
                number, wanted = pickle.load(asked)
                pool.submit(compiled, wanted).add_done_callback(partial(answers.of, number))
        except EOFError:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()  # nobody waits for what they compile


def main(arguments: Sequence[str]) -> None:
    """The capability, as 9.0, and how many processes."""
    capability, processes = arguments
    major, _, minor = capability.partition(".")
    for told in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C is for whoever started this, and so is a terminal that is gone
        signal.signal(told, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compilers print is no answer
    compile_ahead.settle_keys()
    compile_ahead.compile_for((int(major), int(minor)))
    serve(sys.stdin.buffer, out, int(processes))


if __name__ == "__main__":
    main(sys.argv[1:])

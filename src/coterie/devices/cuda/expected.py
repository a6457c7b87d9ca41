"""Kernels of steps that will come, compiled before they do: a thread finds which, processes compile them.

    expect(program, limits)  ->  one bucket after another, decode first  ->  Compilers.ask(what is not there)

A step that is met meanwhile asks for its own as urgent, and so comes first. What goes wrong here only costs time: then
the step's launch compiles, and says what is wrong. Knows nothing about steps that run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from coterie.core.values import value
from coterie.device import Limits
from coterie.devices.cuda.compilers import Compilers
from coterie.devices.cuda.dry_run import DryRun, likely_buckets
from coterie.graph.program import Program


@value
class Expectation:
    """Steps of a program within limits, on a KV cache of such blocks; `shared` as Device.expect has it."""

    program: Program
    limits: Limits
    block_bytes: int
    shared: tuple[int, ...] | None


class Expected:
    """Asks for the likely kernels of what is expected, in the order in which it is. Any thread may call it.

    `made`: a GPU like the one that is here, asked for in the thread when it is needed first.
    """

    def __init__(self, made: Callable[[], DryRun], compilers: Compilers) -> None:
        self._made, self._compilers = made, compilers
        self._waiting: queue.SimpleQueue[Expectation | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __call__(self, program: Program, limits: Limits, block_bytes: int, shared: Sequence[int] | None) -> None:
        """Returns at once."""
        with self._lock:
            if self._closed:
                return
            self._waiting.put(Expectation(program, limits, block_bytes, None if shared is None else tuple(shared)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="expected kernels")
                self._thread.start()

    def close(self) -> None:
        """Stop behind the bucket that is looked at. May be called again."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _work(self) -> None:
        ahead: DryRun | None = None
        while (one := self._waiting.get()) is not None:
            with suppress(Exception):  # it is only about time
                ahead = ahead or self._made()
                self._ask(ahead, one)

    def _ask(self, ahead: DryRun, one: Expectation) -> None:
        exe = ahead.load(one.program)
        if one.shared is not None and not exe.mixes(one.shared):
            return
        for bucket in likely_buckets(one.limits):
            if self._closed:
                return
            wanted = ahead.wanted(exe, [bucket], one.block_bytes, one.shared)
            self._compilers.ask([kernel for kernel, is_there in ahead.kept(wanted).items() if not is_there])

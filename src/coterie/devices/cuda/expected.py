"""Compiles kernels of steps that are expected, ahead of time: a thread finds which, processes compile them.

    expect(program, limits)  ->  one bucket after another, decode first  ->  Compilers.ask(what is missing)

A step that runs in the meantime asks for its own kernels as urgent; those go first. A failure here costs only time: the
step's launch then compiles, and reports the error. Knows nothing about steps that run.
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
    """Steps of a program within limits, with KV blocks of this size; `shared` as in Device.expect."""

    program: Program
    limits: Limits
    block_bytes: int
    shared: tuple[int, ...] | None


class Expected:
    """Requests the kernels that expected steps are likely to launch, in order. Any thread may call it.

    `made` returns a dry run of the present GPU; the thread calls it when it is first needed.
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
        """Stop after the current bucket. May be called again."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _work(self) -> None:
        dry_run: DryRun | None = None
        while (one := self._waiting.get()) is not None:
            with suppress(Exception):  # a failure costs only time
                dry_run = dry_run or self._made()
                self._ask(dry_run, one)

    def _ask(self, dry_run: DryRun, one: Expectation) -> None:
        exe = dry_run.load(one.program)
        if one.shared is not None and not exe.mixes(one.shared):
            return
        for bucket in likely_buckets(one.limits):
            if self._closed:
                return
            wanted = dry_run.wanted(exe, [bucket], one.block_bytes, one.shared)
            self._compilers.ask([kernel for kernel, is_there in dry_run.kept(wanted).items() if not is_there])

"""Runs several pieces of work in parallel, each in its own process; results come in order.

    parent   work(0) .. work(n - 1)  forked, `jobs` at a time, the next as soon as any ends  ->  results over pipes

Knows nothing about what the work is.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

T = TypeVar("T")


def in_parallel(work: Callable[[int], T], count: int, jobs: int) -> Iterator[T]:
    """Yield work(0), work(1) and so on; up to `jobs` run at once, if processes can fork.

    Raises what a piece of work raises: failed work is run again in this process, since not every error can be pickled.
    """
    if min(jobs, count) <= 1 or "fork" not in get_all_start_methods():
        yield from map(work, range(count))
        return
    forked = get_context("fork")
    running: dict[Connection, tuple[int, Any]] = {}
    ended: dict[int, tuple[T] | None] = {}
    num_started = 0
    try:
        for number in range(count):
            while number not in ended:
                while num_started < count and len(running) < jobs:
                    ours, theirs = forked.Pipe(duplex=False)
                    process = forked.Process(target=_send, args=(theirs, work, num_started), daemon=True)
                    process.start()
                    theirs.close()
                    running[ours] = num_started, process
                    num_started += 1
                # Any process that ends makes room, in whatever order.
                for ready in wait(list(running)):
                    if isinstance(ready, Connection):
                        place, process = running.pop(ready)
                        ended[place] = _received(ready)
                        process.join()
            found = ended.pop(number)
            yield work(number) if found is None else found[0]
    finally:
        for _, process in running.values():
            process.terminate()


def _send(pipe: Connection, work: Callable[[int], T], number: int) -> None:
    for told in (signal.SIGINT, signal.SIGHUP):  # a terminal also signals the parent, which terminates this process
        signal.signal(told, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pipe.send((work(number),))
    except Exception:  # the parent runs the work again and raises it there
        pipe.send(None)


def _received(pipe: Connection) -> tuple[Any] | None:
    """What a child sent; None if it failed or sent nothing."""
    try:
        found: tuple[Any] | None = pipe.recv()
    except EOFError:
        return None
    return found

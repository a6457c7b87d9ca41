"""Jobs: what others ask of a thread that steps an engine, done between two steps and in order.

Knows nothing about engines, or who asks.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do between two steps; `fail` tells whoever waits for it that it will not be done."""

    run: Callable[[], None]
    fail: Callable[[Exception], None]


def fail_all(inbox: queue.SimpleQueue[Job | None], error: Exception) -> None:
    """Empty an inbox that nobody reads any more: all who wait are told this error. None, the end, is no job."""
    with suppress(queue.Empty):
        while True:
            job = inbox.get_nowait()
            if job is not None:
                job.fail(error)

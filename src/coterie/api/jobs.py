"""Jobs for a thread that steps an engine, run between two steps, in order.

    put, in any thread --> Inbox --work, in its one thread--> run        refused or closed: fail, so no caller hangs

Knows nothing about engines, or who asks.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do between two steps; `fail` tells the waiting caller that it will not be done."""

    run: Callable[[], None]
    fail: Callable[[Exception], None]


def _for_ever() -> None:
    """The defaults of `work`: no limit on a sleep, and nothing to do after one."""


class Inbox:
    """Jobs for one thread. `wake` ends its step early. `refuses`: the error that new jobs fail with, or None."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._wake = wake
        self.refuses: Exception | None = None

    def put(self, job: Job) -> None:
        """Queue a job, or fail it if the inbox is closed."""
        if self.refuses is not None:
            job.fail(self.refuses)
            return
        self._jobs.put(job)
        self._wake()  # after the put, so that the interrupted thread finds the job
        if self.refuses is not None:
            self.close(self.refuses)  # closed in between: no one else may be left to drain it

    def end(self) -> None:
        """Make `work` return False once the jobs queued so far are done."""
        self._jobs.put(None)
        self._wake()

    def close(self, error: Exception) -> None:
        """Fail all queued and later jobs with this error."""
        self.refuses = error
        with suppress(queue.Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.fail(error)

    def work(
        self,
        sleeps: bool,
        rest_s: Callable[[], float | None] = _for_ever,
        rest: Callable[[], object] = _for_ever,
    ) -> bool:
        """Run the queued jobs. False when told to end.

        `sleeps`: if there are none, wait for one; call `rest` each time `rest_s` seconds (None: forever) pass.
        """
        while True:
            try:
                job = self._jobs.get(sleeps, rest_s() if sleeps else None)
            except queue.Empty:
                if not sleeps:
                    return True
                rest()
                continue
            if job is None:
                return False
            job.run()
            sleeps = False

"""Jobs: what others ask of a thread that steps an engine, done between two steps and in order.

    put, in any thread --> Inbox --work, in its one thread--> run        refused or closed: fail, so that nobody waits

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


def _for_ever() -> None:
    """How long a thread sleeps that has nothing to do when it has slept for long."""


class Inbox:
    """Jobs for one thread. `wake` ends its step early. `refuses`: by which error what comes fails; None: it is done."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._wake = wake
        self.refuses: Exception | None = None

    def put(self, job: Job) -> None:
        """Have a job done, or fail it where no more are."""
        if self.refuses is not None:
            job.fail(self.refuses)
            return
        self._jobs.put(job)
        self._wake()  # after the put: whoever ends a run early finds the job
        if self.refuses is not None:
            self.close(self.refuses)  # in between, and nobody else may empty it any more

    def end(self) -> None:
        """Let `work` say that it is over once what was put before is done."""
        self._jobs.put(None)
        self._wake()

    def close(self, error: Exception) -> None:
        """Nobody does any more of these: all who wait are told this error, and who comes later."""
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
        """Do the jobs that wait. False when told to end.

        `sleeps`: where there are none, until there is one; whenever nothing came for `rest_s` (seconds, None: for ever)
        `rest` is called.
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

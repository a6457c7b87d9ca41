"""Known: the status of one device before its present step, for callers that do not wait for the end of a long step.

    [ a status, if the last is old | timed: a job, or a step ] [ a status, ...         its one thread
                                                          late? status, age_s                 any thread

Knows nothing about what is served, or who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from coterie.api.status import Status

# Choices, not measurements; a status of 17 experts takes half a millisecond, one of hundreds a few.
SOON_S = 0.1  # how long a caller waits for a step before it gets the last known status
KNOWN_S = 1.0  # the maximum age of the kept status when a step begins
LOOK_S = 0.02  # polling interval of waiting callers
MAX_S = 300.0  # cap on recorded step times: a longer step is no measure for others


class Known:
    """What the stepping thread records. `longest_s`: of all steps and jobs so far."""

    def __init__(self, look: Callable[[], Status]) -> None:
        self._look, self.longest_s = look, 0.0
        self._begun_s: float | None = None
        self.renew()

    def renew(self) -> None:
        """Record the status, between two steps."""
        self._stale = False
        self.status, self._known_s = self._look(), monotonic()

    def renew_soon(self) -> None:
        """Something changed that a notified caller may ask about during the next step. Any thread."""
        self._stale = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """Brackets a step or a job; records the status first if the last one is old."""
        if self._stale or self.age_s > KNOWN_S:
            self.renew()
        with self.timed():
            yield

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Times what runs within."""
        begun_s = self._begun_s = monotonic()
        try:
            yield
        finally:
            self.longest_s = max(self.longest_s, min(monotonic() - begun_s, MAX_S))
            self._begun_s = None

    @property
    def age_s(self) -> float:
        """The age of the status, in seconds."""
        return monotonic() - self._known_s

    @property
    def busy_s(self) -> float:
        """How long the present step or job has lasted; 0 if there is none."""
        begun_s = self._begun_s
        return 0.0 if begun_s is None else monotonic() - begun_s

    @property
    def late(self) -> bool:
        """Whether it has lasted longer than a caller should wait for a status."""
        return self.busy_s > SOON_S

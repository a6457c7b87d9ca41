"""Known: the status of one device as it was before the step under way, for who does not wait for the end of that step.

    [ a status, if the last is old | timed: a job, or a step ] [ a status, ...         its one thread
                                                          late? status, age_s                 any thread

Knows nothing about what is served, or who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from coterie.api.status import Status

# Choices, not measurements; a status of 17 experts takes half a millisecond, of hundreds some.
SOON_S = 0.1  # how long a step may keep who asks for a status
KNOWN_S = 1.0  # how old the status that is kept for them may be when a step begins
LOOK_S = 0.02  # how often who waits looks whether it is in such a step
MAX_S = 300.0  # a longer step says nothing of how long others take


class Known:
    """What the thread that steps a device puts down. `longest_s`: of all steps and jobs so far."""

    def __init__(self, look: Callable[[], Status]) -> None:
        self._look, self.longest_s = look, 0.0
        self._begun_s: float | None = None
        self.renew()

    def renew(self) -> None:
        """Put down the status, between two steps."""
        self._stale = False
        self.status, self._known_s = self._look(), monotonic()

    def renew_soon(self) -> None:
        """Something has changed that who is told of it may ask about while the next step lasts. Any thread."""
        self._stale = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step, or a job, is under way, and before it the status is put down if the last one is old."""
        if self._stale or self.age_s > KNOWN_S:
            self.renew()
        with self.timed():
            yield

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Something is under way."""
        begun_s = self._begun_s = monotonic()
        try:
            yield
        finally:
            self.longest_s = max(self.longest_s, min(monotonic() - begun_s, MAX_S))
            self._begun_s = None

    @property
    def age_s(self) -> float:
        """How many seconds old the status is."""
        return monotonic() - self._known_s

    @property
    def busy_s(self) -> float:
        """How long the step, or the job, under way has lasted; 0 where there is none."""
        begun_s = self._begun_s
        return 0.0 if begun_s is None else monotonic() - begun_s

    @property
    def late(self) -> bool:
        """Whether it has lasted longer than who asks for a status should wait."""
        return self.busy_s > SOON_S

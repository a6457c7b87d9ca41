"""Health: whether requests should avoid a device because it fails, as long as other devices can serve them.

    answers --FAILURES of its own in a row--> avoided --some requests went to others--> on trial, by one request
       ^------------------- it answers any request -------------------------------------------'    it fails: avoided,
                                                                                         for twice as many requests
A device that fails every request at once has no load and looks free; without this it would get most of them. The way
back is counted in requests, not seconds, so a bounded share of them is risked, whatever the clock.
Knows nothing about devices, or what makes a failure a device's own.
"""

from __future__ import annotations

from dataclasses import dataclass

# Choices, not measurements. A single failure may have any cause; a trial costs one request the time of a retry.
FAILURES = 3
FIRST_WAIT, MAX_WAIT = 16, 1024


@dataclass(slots=True)
class Health:
    """The health of one device. `failures`: its own, in a row, up to FAILURES. `waits`: requests to pass over it."""

    failures: int = 0
    waits: int = 0
    _wait: int = FIRST_WAIT
    _on_trial: bool = False

    @property
    def failing(self) -> bool:
        """True from when it is first avoided until it answers a request."""
        return self.failures >= FAILURES

    @property
    def avoided(self) -> bool:
        """True if requests should go to other devices."""
        return self.failing and self.waits > 0

    @property
    def due(self) -> bool:
        """True if one request should test whether it answers again."""
        return self.failing and not self.waits

    def answered(self) -> None:
        """It answered a request, or began to."""
        self.failures, self.waits, self._wait, self._on_trial = 0, 0, FIRST_WAIT, False

    def failed(self) -> None:
        """It failed a request by its own fault. While it is avoided, only a trial counts."""
        if not self.failing:
            self.failures += 1
            self.waits = self._wait if self.failing else 0
        elif self._on_trial:
            self._wait = min(2 * self._wait, MAX_WAIT)
            self.waits, self._on_trial = self._wait, False

    def asked(self) -> None:
        """A request went to it; if it is a trial, it is the only one for a while."""
        if self.due:
            self.waits, self._on_trial = self._wait, True

    def passed_over(self) -> None:
        """A request that it could have served went to another device."""
        self.waits -= self.waits > 0

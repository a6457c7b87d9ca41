"""Health: whether what a device answers says that requests should go to others, where these can answer.

    answers --FAILURES of its own in a row--> avoided --some requests went to others--> on trial, by one request
       ^------------------- it answers any request -------------------------------------------'    it fails: avoided,
                                                                                         for twice as many requests
A device that fails every request at once has no load and looks free; without this it would get most of them. The way
back is counted in requests, not seconds: so a bounded share of them is risked, on clocks of any kind.
Knows nothing about devices, or why a failure is a device's own.
"""

from __future__ import annotations

from dataclasses import dataclass

# Choices, not measurements. One failure may be anything; a trial costs one request the time until another one answers.
FAILURES = 3
FIRST_WAIT, MAX_WAIT = 16, 1024


@dataclass(slots=True)
class Health:
    """One device's. `failures`: of its own, in a row, up to FAILURES. `waits`: so many requests go to others first."""

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
        """True where others are to be asked."""
        return self.failing and self.waits > 0

    @property
    def due(self) -> bool:
        """True where one request is to show whether it answers again."""
        return self.failing and not self.waits

    def answered(self) -> None:
        """It has answered a request, or begun to."""
        self.failures, self.waits, self._wait, self._on_trial = 0, 0, FIRST_WAIT, False

    def failed(self) -> None:
        """It has failed a request, and by its own fault. While it is avoided only a trial counts."""
        if not self.failing:
            self.failures += 1
            self.waits = self._wait if self.failing else 0
        elif self._on_trial:
            self._wait = min(2 * self._wait, MAX_WAIT)
            self.waits, self._on_trial = self._wait, False

    def asked(self) -> None:
        """A request went to it. Where that is a trial, it is the only one for a while."""
        if self.due:
            self.waits, self._on_trial = self._wait, True

    def passed_over(self) -> None:
        """A request that it could have had went to another device."""
        self.waits -= self.waits > 0

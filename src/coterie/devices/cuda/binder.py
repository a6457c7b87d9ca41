"""Bounds that are kept for the next run of an executable and a bucket. Knows nothing about what is in them."""

from __future__ import annotations

from coterie.devices.cuda.bound import Bound, Shared
from coterie.devices.cuda.driver import Stream
from coterie.devices.cuda.inputs import Run

MOST_BOUNDS = 64  # of either kind; on an H100 one takes some 0.5 MB of the GPU (1.1B; 2.1 MB for four of its steps)


class Binder:
    """Keeps bounds by executable and bucket, those used last: so many of decode steps, and so many of prompts.

    Apart, as prompts come in far more sizes, and one that is new would else take the place of a step that all use.
    """

    def __init__(self, shared: Shared, most: int = MOST_BOUNDS) -> None:
        self._shared, self._most = shared, most
        self._kept: dict[bool, dict[tuple[object, ...], Bound]] = {True: {}, False: {}}  # by whether they decode

    def bind(self, run: Run, stream: Stream) -> Bound:
        """The bound of a run's executable and bucket, and of what its sequences differ in. Raises CapacityError."""
        key, kept = run.bound_by, self._kept[run.bucket.decodes]
        bound = kept.pop(key, None) or Bound(run.exe, run.bucket, self._shared, run.mixes)
        kept[key] = bound  # the last in order
        if len(kept) > self._most:
            self._shared.driver.wait(self._shared.driver.mark(stream))
            del kept[next(iter(kept))]
        return bound

    def is_captured(self, run: Run) -> bool:
        """Whether the steps of a run are captured; any thread may ask."""
        bound = self._kept[run.bucket.decodes].get(run.bound_by)
        return bound is not None and bound.is_captured

    def forget(self) -> None:
        """Let all of them go."""
        for kept in self._kept.values():
            kept.clear()

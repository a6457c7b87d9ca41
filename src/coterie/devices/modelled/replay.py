"""Replays durations recorded on a real device, per lane in order of issue, instead of prices.

Knows nothing about what the work was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.core.errors import DeviceError


class Replay:
    """Hands out recorded durations. `where`: the location that errors name."""

    def __init__(self, where: str, durations: Mapping[str, Sequence[float]]) -> None:
        self._where = where
        self._durations = {lane: tuple(seconds) for lane, seconds in durations.items()}
        self._issued = dict.fromkeys(durations, 0)

    def next_s(self, lane: str) -> float:
        """Duration of the next work on a lane. Raises DeviceError if more is issued than was recorded."""
        recorded, index = self._durations.get(lane, ()), self._issued.get(lane, 0)
        if index >= len(recorded):
            fact = f"lane {lane} has {len(recorded)} recorded durations but more work was issued"
            raise DeviceError(self._where, fact, "replay the workload and settings that were recorded")
        self._issued[lane] = index + 1
        return recorded[index]

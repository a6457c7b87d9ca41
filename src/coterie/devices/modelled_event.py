"""Events of the modelled device: each carries its own work, so that nothing is kept of an event that nobody holds.

Knows nothing about what the work costs or computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from coterie.core.values import value
from coterie.device import I32, Event
from coterie.devices.modelled_time import Work


@value
class ModelledEvent(Event):
    """An event with its work on the clock. `tokens` tells what a run drew; None for other work and for a failed run."""

    work: Work = field(compare=False, repr=False)
    tokens: Callable[[], I32] | None = field(default=None, compare=False, repr=False)


def own(event: Event) -> ModelledEvent:
    """The event as one of ours. Raises ValueError for another device's."""
    if not isinstance(event, ModelledEvent):
        raise ValueError(f"event {event.event_id} ({event.label}) is of another device")
    return event


def finished(event: Event) -> ModelledEvent:
    """The same event, with its work. Raises ValueError if it is not finished."""
    mine = own(event)
    if mine.work.end_s is None:
        raise ValueError(f"{event.label} is not finished")
    return mine

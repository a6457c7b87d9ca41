"""Events of the modelled device. Each carries its own work, so the device keeps no record of unreferenced events.

Knows nothing about what the work costs or computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from coterie.core.values import value
from coterie.device import I32, Event
from coterie.devices.modelled.fluid import Work


@value
class ModelledEvent(Event):
    """An event with its work on the clock. `tokens` returns a run's tokens; None for other work and failed runs."""

    work: Work = field(compare=False, repr=False)
    tokens: Callable[[], I32] | None = field(default=None, compare=False, repr=False)


def as_own_event(event: Event) -> ModelledEvent:
    """Narrow to our event type. Raises ValueError for another device's event."""
    if not isinstance(event, ModelledEvent):
        raise foreign_event(event)
    return event


def finished(event: Event) -> Work:
    """The work of a finished event. Raises ValueError if it is not finished or another device's."""
    if not isinstance(event, ModelledEvent):
        raise foreign_event(event)
    if event.work.end_s is None:
        raise ValueError(f"{event.label} is not finished")
    return event.work


def passed(event: Event) -> Work:
    """As `finished`, for work that succeeded; else raises its failure."""
    work = finished(event)
    if work.failure is not None:
        raise work.failure
    return work


def drawn_by(event: Event) -> I32:
    """Sampled tokens [steps done, R] of a finished run. Raises its failure, ValueError for any other event."""
    pieces = passed(event).pieces
    tokens = event.tokens if isinstance(event, ModelledEvent) else None
    if tokens is None:
        raise ValueError(f"{event.label} draws no tokens")
    drawn = tokens()
    return drawn if pieces is None else drawn[:pieces]


def foreign_event(event: Event) -> ValueError:
    """The error for an event of another device."""
    return ValueError(f"event {event.event_id} ({event.label}) is of another device")

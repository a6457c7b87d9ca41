"""Events of the modelled device: each carries its own work, so that nothing is kept of an event that nobody holds.

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
    """An event with its work on the clock. `tokens` tells what a run drew; None for other work and for a failed run."""

    work: Work = field(compare=False, repr=False)
    tokens: Callable[[], I32] | None = field(default=None, compare=False, repr=False)


def own(event: Event) -> ModelledEvent:
    """The event as one of ours. Raises ValueError for another device's."""
    if not isinstance(event, ModelledEvent):
        raise not_ours(event)
    return event


def finished(event: Event) -> Work:
    """The work of an event of ours. Raises ValueError if it is not finished."""
    if not isinstance(event, ModelledEvent):
        raise not_ours(event)
    if event.work.end_s is None:
        raise ValueError(f"{event.label} is not finished")
    return event.work


def passed(event: Event) -> Work:
    """The work of an event of ours that did not fail. Raises its failure, ValueError if it is not finished."""
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


def not_ours(event: Event) -> ValueError:
    """What is raised for an event of another device."""
    return ValueError(f"event {event.event_id} ({event.label}) is of another device")

r"""A layout as device calls: fetches and copies in execution order, and the gate of each stage.

        disk lane     r0 -> r1 -> r2 -> ...         each range waits for its predecessor, so the event of a range stands
                       \     \     \                for all before it, and a failure stops what would come after it
        copy lane       r0 -> r1 -> r2 -> ...       with several tiers the copy of a range waits for its arrival below

Knows nothing about who owns the extents or why they are filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from coterie.checkpoint.layout import Layout
from coterie.device import Buffer, Device, Event


def fetch_layout(device: Device, layout: Layout, dst: Buffer, issued: list[Event]) -> None:
    """Read every range of `layout` from its file into `dst`.

    Appends one event per range to `issued` as it goes: the caller knows what is in flight even if the device raises.
    """
    for placed in layout.ranges:
        view = dst.view(placed.offset, placed.source.size_bytes)
        issued.append(device.fetch(view, placed.source, after=issued[-1:]))


def copy_layout(
    device: Device, layout: Layout, dst: Buffer, src: Buffer, arrivals: Sequence[Event], issued: list[Event]
) -> None:
    """Copy every range of `layout` from `src`, a copy in a tier below, into `dst`.

    `arrivals` has one event per range while `src` is itself still arriving, and is empty once it is there.
    Appends one event per range to `issued` as it goes.
    """
    for index, placed in enumerate(layout.ranges):
        offset, size_bytes = placed.offset, placed.source.size_bytes
        after = [*issued[-1:], *arrivals[index : index + 1]]
        issued.append(device.copy(dst.view(offset, size_bytes), src.view(offset, size_bytes), after=after))


def stage_gates(layout: Layout, events: Sequence[Event]) -> Mapping[str, Event]:
    """Stage -> the event after which all ranges up to and including that stage are there; one of `events` per range."""
    return MappingProxyType({placed.stage: event for placed, event in zip(layout.ranges, events, strict=True)})

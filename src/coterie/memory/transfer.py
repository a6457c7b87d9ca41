r"""Issues the transfers of a layout: fetches and copies in execution order, and the gate of each stage.

        disk lane     r0 -> r1 -> r2 -> ...         each range waits for its predecessor, so its event implies all
                       \     \     \                earlier ones, and a failure cancels everything after it
        copy lane       r0 -> r1 -> r2 -> ...       with several tiers, a range's copy waits for its arrival below
        early rows      rows -> r1 -> r2 ... -> r0  r0 holds the embedding, of which a first batch needs only some rows

Knows nothing about who owns the extents or why they are filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from coterie.checkpoint.layout import Layout, PlacedRange, Table
from coterie.device import Buffer, Device, Event
from coterie.memory.residency import Early
from coterie.memory.rows import EarlyRows


@dataclass(frozen=True, slots=True)
class Below:
    """An expert's copy in the tier below. `arrivals`: one event per range while it is still loading, else none."""

    weights: Buffer
    arrivals: Sequence[Event] = ()


def fetch_layout(
    device: Device, layout: Layout, dst: Buffer, issued: list[Event], early: EarlyRows | None = None
) -> None:
    """Read every range of `layout` from its file into `dst`; `early` rows first, and the range with their table last.

    Appends one event for the rows, if any, and one per range to `issued` as it goes, so that the caller knows what is
    in flight even if the device raises.
    """
    device.place(dst, layout.spans)
    table, ranges = _split(layout, early)
    if table is not None and early is not None:
        placed = layout.ranges[table.range_index]
        issued.append(device.fetch(_view(dst, placed), placed.source, (), early.parts))
    for placed in ranges:
        issued.append(device.fetch(_view(dst, placed), placed.source, after=issued[-1:]))


def copy_layout(
    device: Device,
    layout: Layout,
    dst: Buffer,
    below: Below,
    issued: list[Event],
    early: EarlyRows | None = None,
) -> None:
    """Copy every range of `layout` from the tier below into `dst`; `early` rows as in fetch_layout.

    With `early` rows the copy below must be complete. Appends events to `issued` as fetch_layout does.
    """
    src = below.weights
    device.place(dst, layout.spans)
    table, ranges = _split(layout, early)
    if table is not None and early is not None:
        placed = layout.ranges[table.range_index]
        issued.append(device.copy(_view(dst, placed), _view(src, placed), (), early.parts))
    if not below.arrivals:
        pieces = tuple([(placed.offset, placed.source.size_bytes) for placed in ranges])
        device.copy_all(dst, src, pieces, issued)
        return
    for index, placed in enumerate(ranges):
        after = [*issued[-1:], *below.arrivals[index : index + 1]]
        issued.append(device.copy(_view(dst, placed), _view(src, placed), after))


def stage_gates(layout: Layout, events: Sequence[Event], early: EarlyRows | None = None) -> Mapping[str, Event]:
    """Stage -> the event after which all its weights are there; `events` as issued by fetch_layout or copy_layout.

    Valid for any batch: with `early` rows, every stage that reads their table awaits the whole of it.
    """
    table, ranges = _split(layout, early)
    by_range = {placed.stage: event for placed, event in zip(ranges, events[table is not None :], strict=True)}
    if table is None:
        return MappingProxyType(by_range)
    gates = dict.fromkeys(layout.stages, events[-1]) | by_range
    gates |= dict.fromkeys((layout.ranges[table.range_index].stage, *table.later_stages), events[-1])
    return MappingProxyType(gates)


def early_gate(layout: Layout, events: Sequence[Event], early: EarlyRows | None) -> Early | None:
    """The weaker gate of the table's stage, for batches whose tokens are all among the early rows."""
    table, ranges = _split(layout, early)
    if table is None or early is None:
        return None
    stage = layout.ranges[table.range_index].stage
    beside = [event for placed, event in zip(ranges[:-1], events[1:-1], strict=True) if placed.stage == stage]
    return Early(stage, early.rows, beside[-1] if beside else events[0])


def arrived_bytes(device: Device, layout: Layout, events: Sequence[Event], early: EarlyRows | None = None) -> int:
    """Bytes of a load that have arrived so far; `events` as issued by fetch_layout or copy_layout."""
    table, ranges = _split(layout, early)
    sizes = [placed.source.size_bytes for placed in ranges]
    if table is not None and early is not None:
        sizes.insert(0, early.size_bytes)
    return sum([size for size, event in zip(sizes, events, strict=False) if device.done(event)])


def _view(buffer: Buffer, placed: PlacedRange) -> Buffer:
    """The part of an extent that a range fills."""
    return buffer.view(placed.offset, placed.source.size_bytes)


def _split(layout: Layout, early: EarlyRows | None) -> tuple[Table | None, tuple[PlacedRange, ...]]:
    """The table that has early rows, if any, and the ranges in the order of transfer."""
    table = layout.table
    if early is None or table is None:
        return None, layout.ranges
    at = table.range_index
    return table, (*layout.ranges[:at], *layout.ranges[at + 1 :], layout.ranges[at])

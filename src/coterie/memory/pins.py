"""Pins: whether what is pinned in the run tier leaves room for the others, before anybody has to wait for them.

        |  A pinned  |......|  B pinned  |..........|      an expert needs one piece: the larger of the holes

Knows nothing about requests: sizes in, or a ConflictError out.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from coterie.core.errors import ConflictError
from coterie.core.units import format_bytes
from coterie.memory.cache import ExpertCache
from coterie.memory.slab import round_up
from coterie.memory.tiers import TierLedger


def check_room(cache: ExpertCache, expert_id: str, size_bytes: int) -> None:
    """Raise ConflictError where an expert of this size has no room beside those that are pinned and there."""
    near = cache.ledgers[0]
    room, need = _hole(near, cache.pinned), round_up(size_bytes)
    if room < need:
        pinned = ", ".join(sorted(cache.pinned & near.copies.keys()))
        fact = (
            f"it needs {format_bytes(need)} of {near.tier} but beside {pinned}, pinned, there are {format_bytes(room)}"
        )
        raise ConflictError(f"load {expert_id}", fact, "unpin one of them")


def check_pin(cache: ExpertCache, expert_id: str, sizes: Mapping[str, int]) -> None:
    """Raise ConflictError where, with this one pinned too, the largest expert that is not would never have room.

    `sizes`: of all experts of the cache, in bytes. Where pinned ones that are not there yet will lie is not known, so
    these count by their bytes alone.
    """
    if expert_id in cache.pinned:
        return
    near, pinned = cache.ledgers[0], cache.pinned | {expert_id}
    taken = sum([round_up(sizes[name]) for name in pinned if name in sizes])
    others = sorted(sizes.keys() - pinned, key=lambda name: (-sizes[name], name))
    need = round_up(sizes[others[0]]) if others else 0
    room = min(_hole(near, pinned), near.capacity_bytes - taken)
    if room >= need:
        return
    fact = (
        f"the {len(pinned)} pinned experts would take {format_bytes(taken)} of {format_bytes(near.capacity_bytes)} of "
    )
    fact += f"{near.tier}"
    if others:
        fact += f" and leave {format_bytes(max(room, 0))} in one piece, but {others[0]} needs {format_bytes(need)}"
    remedy = "unpin another, or " + (
        f"serve with a --near that is {taken + need - near.capacity_bytes} B larger"
        if taken + need > near.capacity_bytes
        else "unload what is pinned and load it again, as it lies in the middle"
    )
    raise ConflictError(f"pin {expert_id}", fact, remedy)


def _hole(ledger: TierLedger, kept: Set[str]) -> int:
    """Bytes of the largest expert that would fit if only these were there."""
    extents = sorted([copy.extent for name, copy in ledger.copies.items() if name in kept and not copy.is_doomed])
    starts = [*[extent.offset for extent in extents], ledger.capacity_bytes]
    ends = [0, *[extent.end for extent in extents]]
    return max([start - end for start, end in zip(starts, ends, strict=True)])

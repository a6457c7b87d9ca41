"""Pins: fixed offsets in the run tier for pinned experts, so that a hole for every other expert is always left.

        | A loaded |......| B loaded |  C reserved  |..........|      a hole for the largest expert that is not pinned

An expert that is not resident when it is pinned gets its offset at once: wherever it happened to be loaded later, it
might split the remaining memory. Knows nothing about requests: sizes in, offsets or a ConflictError out.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from coterie.core.errors import ConflictError
from coterie.core.units import format_bytes
from coterie.memory.cache import ExpertCache
from coterie.memory.slab import Extent, Slab, SlabFullError, round_up
from coterie.memory.tiers import TierLedger


def check_room(cache: ExpertCache, expert_id: str, size_bytes: int) -> None:
    """Raise ConflictError if an expert of this size does not fit next to the pinned experts that are resident."""
    near = cache.ledgers[0]
    room, need = _hole(near, cache.pinned), round_up(size_bytes)
    if room < need:
        pinned = ", ".join(sorted(cache.pinned & near.copies.keys()))
        fact = (
            f"it needs {format_bytes(need)} of {near.tier} but beside {pinned}, pinned, there are {format_bytes(room)}"
        )
        raise ConflictError(f"load {expert_id}", fact, "unpin one of them")


def offsets_if_pinned(cache: ExpertCache, expert_id: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Run-tier offsets of all pinned experts if this one is pinned too; empty if it is pinned already.

    `sizes`: bytes of every expert of the cache. Resident experts stay where they are. The others, and a hole for the
    largest unpinned expert, are placed best fit, largest first. Raises ConflictError if one of them does not fit.
    """
    if expert_id in cache.pinned:
        return {}
    near, pinned = cache.ledgers[0], cache.pinned | {expert_id}
    try:
        return _offsets(near, pinned, sizes)
    except SlabFullError:
        raise _cannot_pin(near, expert_id, pinned, sizes) from None


def offsets_if_added(cache: ExpertCache, expert_id: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """As `offsets_if_pinned`, when an unpinned expert is added or its size changes (`sizes` includes it).

    Empty unless it is now the largest unpinned expert, or if it exceeds the tier. Raises ConflictError if the pins
    leave no hole for it: every request for it would be refused.
    """
    near, pinned = cache.ledgers[0], cache.pinned
    need = round_up(sizes[expert_id])
    if not pinned or need > near.capacity_bytes or _largest(sizes, pinned) != [expert_id]:
        return {}
    try:
        return _offsets(near, pinned, sizes)
    except SlabFullError:
        names = ", ".join(sorted(pinned))
        fact = f"it needs {format_bytes(need)} of {near.tier} in one piece, which {names}, pinned, would not leave"
        raise ConflictError(expert_id, fact, "unpin one of them, and rescan") from None


def _offsets(near: TierLedger, pinned: Set[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Offsets of the pinned experts. Raises SlabFullError."""
    there, slab = _resident_extents(near, pinned), Slab(near.capacity_bytes)
    taken = [(name, slab.alloc(extent.size_bytes, extent.offset)) for name, extent in there.items()]
    taken += [(name, slab.alloc(sizes[name])) for name in _unplaced(near, pinned, sizes)]
    return {name: extent.offset for name, extent in taken if name in pinned}


def _unplaced(near: TierLedger, pinned: Set[str], sizes: Mapping[str, int]) -> list[str]:
    """Experts still to be placed: pinned but not resident, and the largest unpinned one; largest first."""
    absent = pinned & sizes.keys() - _resident_extents(near, pinned).keys()
    return sorted([*absent, *_largest(sizes, pinned)], key=lambda name: (-sizes[name], name))


def _largest(sizes: Mapping[str, int], pinned: Set[str]) -> list[str]:
    """The largest unpinned expert, as a list of one; empty if all are pinned."""
    return sorted(sizes.keys() - pinned, key=lambda name: (-sizes[name], name))[:1]


def _cannot_pin(near: TierLedger, expert_id: str, pinned: Set[str], sizes: Mapping[str, int]) -> ConflictError:
    """The error for a pin that does not fit, with its remedy: more memory, or unloading experts to place them anew."""
    wanted, others = _unplaced(near, pinned, sizes), _largest(sizes, pinned)
    taken, need = (sum([round_up(sizes[name]) for name in names]) for names in (pinned & sizes.keys(), others))
    lacking = taken + need - near.capacity_bytes
    if lacking > 0:
        room = max(min(_hole(near, pinned), near.capacity_bytes - taken), 0)
        fact = f"the {len(pinned)} pinned experts would take {format_bytes(taken)} of "
        fact += f"{format_bytes(near.capacity_bytes)} of {near.tier}"
        if others:
            fact += f" and leave {format_bytes(room)} in one piece, but {others[0]} needs {format_bytes(need)}"
        remedy = f"serve with a --near that is {lacking} B larger"
    else:
        there = ", ".join(sorted(_resident_extents(near, pinned)))
        pieces = ", ".join([f"{name} ({format_bytes(round_up(sizes[name]))})" for name in wanted])
        fact = f"as {there} would lie in {near.tier}, the holes beside have no piece for each of {pieces}"
        remedy = f"unload {there} and pin again before they come in: then they lie side by side"
    return ConflictError(f"pin {expert_id}", fact, f"unpin another, or {remedy}")


def _resident_extents(near: TierLedger, names: Set[str]) -> dict[str, Extent]:
    """Extents of those of `names` that are resident and not doomed."""
    return {name: copy.extent for name, copy in near.copies.items() if name in names and not copy.is_doomed}


def _hole(near: TierLedger, kept: Set[str]) -> int:
    """Bytes of the largest hole if only the experts in `kept` were resident."""
    extents = sorted(_resident_extents(near, kept).values())
    starts = [*[extent.offset for extent in extents], near.capacity_bytes]
    ends = [0, *[extent.end for extent in extents]]
    return max([start - end for start, end in zip(starts, ends, strict=True)])

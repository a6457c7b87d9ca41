"""Eviction policies: pure functions that choose victims so that one contiguous hole of the needed size opens.

        |  A  |..|  B  | C |.....|   D   |        a window is a run of adjacent extents; evicting it opens the bytes
              <---window---->                     from the end of its left neighbour to the start of its right one

Every policy considers the smallest sufficient window from each starting extent, so mixed sizes cannot deadlock through
fragmentation: with nothing pinned or busy, the largest window is the whole slab. With equal sizes a window is a single
expert, and each policy is the textbook one of its name.

Knows nothing about devices, events or files.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from types import MappingProxyType
from typing import TypeAlias

from coterie.core.errors import UsageError
from coterie.core.values import value


@value
class Entry:
    """An expert's copy in a tier, as a policy sees it.

    `last_used`: sequence number of its latest `want`. `uses`: requests for it so far; `recent`: the same with
    exponential decay. `refetch_cost`: cost of loading it again, in bytes over the fastest link. A `pinned` copy is
    never evicted; a `busy` one cannot be until its events have finished.
    """

    expert_id: str
    offset: int
    size_bytes: int
    last_used: int
    uses: int = 0
    recent: float = 0.0
    refetch_cost: int = 0
    pinned: bool = False
    busy: bool = False


Window: TypeAlias = tuple[Entry, ...]
Score: TypeAlias = tuple[float, ...]
Policy: TypeAlias = Callable[[Sequence[Entry], int, int, int], Window]
"""(entries, capacity_bytes, need_bytes, now) -> victims. `now` is the number of wants so far. Raises HoleError."""


class HoleError(Exception):
    """No window opens `need_bytes` now; `reachable_bytes` is the largest possible hole once nothing is busy."""

    def __init__(self, need_bytes: int, reachable_bytes: int) -> None:
        self.need_bytes, self.reachable_bytes = need_bytes, reachable_bytes
        super().__init__(f"{need_bytes} bytes are needed in one piece but {reachable_bytes} can be had")

    @property
    def waiting_helps(self) -> bool:
        """Whether the hole can open once work in flight has finished; False when pins or its size prevent that."""
        return self.reachable_bytes >= self.need_bytes


def _best(
    score: Callable[[Window, int], Score], entries: Sequence[Entry], capacity_bytes: int, need_bytes: int, now: int
) -> Window:
    """The window with the lowest score, then fewest bytes, then lowest offset; empty if a large enough hole exists."""
    placed = sorted(entries, key=_offset)
    if _largest_hole(placed, capacity_bytes) >= need_bytes:
        return ()
    candidates = list(_windows(placed, capacity_bytes, need_bytes))
    if not candidates:
        raise HoleError(need_bytes, _largest_hole([e for e in placed if e.pinned], capacity_bytes))
    scores = [score(window, now) for window in candidates]
    least = min(scores)
    best = [window for window, found in zip(candidates, scores, strict=True) if found == least]
    return min(best, key=lambda w: (sum([e.size_bytes for e in w]), w[0].offset)) if len(best) > 1 else best[0]


lru: Policy = partial(_best, lambda window, _: (max([e.last_used for e in window]),))
"""Least recently used: the window whose most recently used expert was used longest ago. Source: the paper's runtime."""

lfu: Policy = partial(_best, lambda window, _: (max([e.uses for e in window]), max([e.last_used for e in window])))
"""Least frequently used: minimises the use count of a window's most used expert; ties go to the less recently used."""

recent: Policy = partial(_best, lambda window, _: (sum([e.recent for e in window]),))
"""Least frequently used, with decay: the window with the smallest sum of recent uses.

Recent use predicts reuse, and each victim would have to be loaded again, so the sum estimates the switches that the
hole will cost. Formerly popular experts fade, a short lull does not evict a popular one, and one victim is preferred
to two of the same popularity.
"""

cost: Policy = partial(_best, lambda window, now: (sum(e.refetch_cost / (now - e.last_used + 1) for e in window),))
"""Cost-aware: the window with the smallest sum of (refetch cost / wants since the last use)."""


def belady(order: Sequence[str]) -> Policy:
    """Belady's rule, given the order of all wants: the window whose soonest next use is furthest in the future.

    Optimal (fewest misses) where sizes are equal; with mixed sizes a heuristic, not a bound.
    Source: L. A. Belady, IBM Systems Journal 5(2), 1966.
    """
    positions: dict[str, list[int]] = {}
    for index, expert_id in enumerate(order):
        positions.setdefault(expert_id, []).append(index)

    def next_use(expert_id: str, now: int) -> int:
        known = positions.get(expert_id, [])
        at = bisect_left(known, now)
        return known[at] if at < len(known) else len(order)

    return partial(_best, lambda window, now: (-min(next_use(e.expert_id, now) for e in window),))


EVICTION: Mapping[str, Policy] = MappingProxyType({"lru": lru, "lfu": lfu, "cost": cost, "recent": recent})


def policy_of(evict: str | Policy) -> Policy:
    """Look a policy up by name; a policy is returned as is. Raises UsageError for an unknown name."""
    if not isinstance(evict, str):
        return evict
    if evict not in EVICTION:
        raise UsageError("evict", f"{evict!r} is not an eviction policy", f"use one of {', '.join(EVICTION)}")
    return EVICTION[evict]


def overlapping(entries: Sequence[Entry], offset: int, need_bytes: int) -> Window:
    """Every entry that overlaps [offset, offset + need_bytes): victims for an expert with a fixed offset.

    Raises HoleError if any of them is busy (waiting helps) or pinned (it does not).
    """
    end = offset + need_bytes
    inside = sorted([e for e in entries if e.offset < end and offset < e.offset + e.size_bytes], key=_offset)
    pinned = sum([min(end, e.offset + e.size_bytes) - max(offset, e.offset) for e in inside if e.pinned])
    if pinned or any(e.busy for e in inside):
        raise HoleError(need_bytes, need_bytes - pinned)
    return tuple(inside)


_offset = attrgetter("offset")


def _windows(placed: Sequence[Entry], capacity_bytes: int, need_bytes: int) -> Iterator[Window]:
    """For each starting extent, the shortest run of evictable neighbours that opens `need_bytes`."""
    starts = [e.offset for e in placed] + [capacity_bytes]
    for first in range(len(placed)):
        left = placed[first - 1].offset + placed[first - 1].size_bytes if first else 0
        for last in range(first, len(placed)):
            if placed[last].pinned or placed[last].busy:
                break
            if starts[last + 1] - left >= need_bytes:
                yield tuple(placed[first : last + 1])
                break


def _largest_hole(placed: Sequence[Entry], capacity_bytes: int) -> int:
    """Bytes of the largest hole between these extents, sorted by offset."""
    ends = [0] + [e.offset + e.size_bytes for e in placed]
    starts = [e.offset for e in placed] + [capacity_bytes]
    return max([start - end for start, end in zip(starts, ends, strict=True)])

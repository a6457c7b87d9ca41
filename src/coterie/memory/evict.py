"""Who goes: pure functions that pick victims such that one contiguous hole of the needed size opens.

        |  A  |..|  B  | C |.....|   D   |        a window is a run of neighbours; what it opens reaches from the end of
              <---window---->                     the extent before it to the start of the extent behind it

Every policy looks at the smallest window from each possible start, so experts of different sizes never deadlock by
fragmentation: with nothing pinned or busy the widest window is the whole slab. With equal sizes a window is one expert,
and each policy is the plain one of its name.

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

    `last_used` is the number of the want that used it last, `uses` how many requests wanted it in all, `recent` the
    same but fading with the requests that follow; `refetch_cost` is what bringing it back would cost, in bytes over the
    fastest link. `pinned` never goes; `busy` may go once its events are finished.
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
"""(entries, capacity_bytes, need_bytes, now) -> victims. `now` counts the wants so far. Raises HoleError."""


class HoleError(Exception):
    """No window opens a hole of `need_bytes` now; `reachable_bytes` is the largest once nothing is busy any more."""

    def __init__(self, need_bytes: int, reachable_bytes: int) -> None:
        self.need_bytes, self.reachable_bytes = need_bytes, reachable_bytes
        super().__init__(f"{need_bytes} bytes are needed in one piece but {reachable_bytes} can be had")

    @property
    def waiting_helps(self) -> bool:
        """True when the hole can open once work in flight has finished; False when pins, or the size, forbid it."""
        return self.reachable_bytes >= self.need_bytes


def _best(
    score: Callable[[Window, int], Score], entries: Sequence[Entry], capacity_bytes: int, need_bytes: int, now: int
) -> Window:
    """The window of least score, then fewest bytes, then lowest offset; empty when a hole is there already."""
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
"""Least recently used: the window whose youngest victim is the oldest. Source: the paper's runtime."""

lfu: Policy = partial(_best, lambda window, _: (max([e.uses for e in window]), max([e.last_used for e in window])))
"""Least frequently used: the window whose most wanted victim was wanted least often, the older one on ties."""

recent: Policy = partial(_best, lambda window, _: (sum([e.recent for e in window]),))
"""Least used of late: the window with the least sum of recent uses.

Who was used often lately is soon wanted again, and every victim of a window is: so the sum is what the hole costs in
switches. An old favourite fades, one quiet spell does not cost a favourite its place, and two do not go where one like
them would do.
"""

cost: Policy = partial(_best, lambda window, now: (sum(e.refetch_cost / (now - e.last_used + 1) for e in window),))
"""Cost-aware: the window with the least sum of (cost to bring back / wants since the last use)."""


def belady(order: Sequence[str]) -> Policy:
    """Belady's rule on the known order of all wants: the window whose earliest needed victim is needed last.

    The fewest misses possible, where sizes are equal; with different sizes a rule of thumb, not a bound.
    Source: L. A. Belady, IBM Systems Journal 5(2), 1966.
    """
    wants: dict[str, list[int]] = {}
    for index, expert_id in enumerate(order):
        wants.setdefault(expert_id, []).append(index)

    def next_use(expert_id: str, now: int) -> int:
        known = wants.get(expert_id, [])
        at = bisect_left(known, now)
        return known[at] if at < len(known) else len(order)

    return partial(_best, lambda window, now: (-min(next_use(e.expert_id, now) for e in window),))


EVICTION: Mapping[str, Policy] = MappingProxyType({"lru": lru, "lfu": lfu, "cost": cost, "recent": recent})


def policy_of(evict: str | Policy) -> Policy:
    """The policy of a name, or the policy itself. Raises UsageError for an unknown name."""
    if not isinstance(evict, str):
        return evict
    if evict not in EVICTION:
        raise UsageError("evict", f"{evict!r} is not an eviction policy", f"use one of {', '.join(EVICTION)}")
    return EVICTION[evict]


def whole_place(entries: Sequence[Entry], offset: int, need_bytes: int) -> Window:
    """All that lies in [offset, offset + need_bytes), whoever used it last: for an expert with a place of its own.

    Raises HoleError: while some of it is busy, or where some of it is pinned, which no wait helps.
    """
    end = offset + need_bytes
    inside = sorted([e for e in entries if e.offset < end and offset < e.offset + e.size_bytes], key=_offset)
    pinned = sum([min(end, e.offset + e.size_bytes) - max(offset, e.offset) for e in inside if e.pinned])
    if pinned or any(e.busy for e in inside):
        raise HoleError(need_bytes, need_bytes - pinned)
    return tuple(inside)


_offset = attrgetter("offset")


def _windows(placed: Sequence[Entry], capacity_bytes: int, need_bytes: int) -> Iterator[Window]:
    """For each start the smallest run of neighbours that may go and that opens `need_bytes`."""
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
    """Bytes of the largest hole between these extents, which are sorted by offset."""
    ends = [0] + [e.offset + e.size_bytes for e in placed]
    starts = [e.offset for e in placed] + [capacity_bytes]
    return max([start - end for start, end in zip(starts, ends, strict=True)])

"""Optimal partition of a graph into sections: dynamic programming over down-sets, exact for additive costs.

    f(D) = min over down-sets E inside D of  f(E) + cost(D - E)      D, E: sets of ops closed under predecessors

The difference of two nested down-sets is convex, and sections execute in that order, so no cycle can arise. For graphs
with too many down-sets (wide graphs), only intervals of the given order are tried.

Knows nothing about what a section costs or why one is impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

# Time in seconds of a section, given as a bit mask of its ops; None if it is impossible.
Cost: TypeAlias = Callable[[int], float | None]
MAX_DOWN_SETS = 400


def best_cut(count: int, pairs: Sequence[tuple[int, int]], cost: Cost) -> tuple[int, ...] | None:
    """Masks of the cheapest sections in execution order; None if there are none. `pairs`: edges (src, dst)."""
    sets = down_sets(count, pairs, MAX_DOWN_SETS)
    return _cheapest(sets if sets is not None else [(1 << n) - 1 for n in range(count + 1)], cost)


def down_sets(count: int, pairs: Sequence[tuple[int, int]], limit: int) -> list[int] | None:
    """All down-sets by size, as masks; None if there are more than `limit`."""
    needs = [0] * count
    for src, dst in pairs:
        needs[dst] |= 1 << src
    found, level = [0], {0}
    while level:
        grown = {
            done | 1 << op for done in level for op in range(count) if not done >> op & 1 and needs[op] & ~done == 0
        }
        found += sorted(grown)
        if len(found) > limit:
            return None
        level = grown
    return found


def _cheapest(sets: Sequence[int], cost: Cost) -> tuple[int, ...] | None:
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for at, whole in enumerate(sets[1:], start=1):
        for done in sets[:at]:
            if done & ~whole or done not in best:
                continue
            before, cuts = best[done]
            if whole in best and before >= best[whole][0]:
                continue
            price = cost(whole & ~done)
            if price is not None and (whole not in best or before + price < best[whole][0]):
                best[whole] = (before + price, (*cuts, whole & ~done))
    full = sets[-1]
    return best[full][1] if full in best else None


def members(mask: int) -> list[int]:
    """Positions of the set bits, ascending."""
    return [at for at in range(mask.bit_length()) if mask >> at & 1]

"""The registry of exhibits, by name.

Knows nothing about how they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from coterie.core.errors import NotFoundError
from coterie.plan.paper.coe import figure_1, figure_12, table_5
from coterie.plan.paper.fair import fair
from coterie.plan.paper.figure10 import figure_10
from coterie.plan.paper.figure11 import figure_11
from coterie.plan.paper.figure13 import figure_13
from coterie.plan.paper.row import Exhibit
from coterie.plan.paper.table1 import table_1
from coterie.plan.paper.table4 import table_4

EXHIBITS: Mapping[str, Callable[[], Exhibit]] = {
    "table-1": table_1,
    "figure-1": figure_1,
    "figure-10": figure_10,
    "figure-11": figure_11,
    "figure-12": figure_12,
    "figure-13": figure_13,
    "table-4": table_4,
    "table-5": table_5,
    "fair": fair,
}


Work = Callable[[int], Exhibit]
_made: dict[str, Exhibit] = {}


def one_by_one(work: Work, count: int) -> Iterable[Exhibit]:
    """Compute exhibits one by one in this process."""
    return map(work, range(count))


def exhibits(
    names: Sequence[str] = (), each: Callable[[Work, int], Iterable[Exhibit]] = one_by_one
) -> tuple[Exhibit, ...]:
    """These exhibits, or all, in the paper's order; `each` computes those that are not cached.

    Raises NotFoundError for an unknown name.
    """
    for name in names:
        if name not in EXHIBITS:
            raise NotFoundError(name, "there is no such exhibit", f"use one of {', '.join(EXHIBITS)}")
    chosen = [name for name in EXHIBITS if not names or name in names]
    lacking = [name for name in chosen if name not in _made]
    _made.update(zip(lacking, each(lambda number: EXHIBITS[lacking[number]](), len(lacking)), strict=True))
    return tuple(_made[name] for name in chosen)

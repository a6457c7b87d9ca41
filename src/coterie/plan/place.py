"""Placement: which experts each of several equal machines holds, and which part of an expert's load goes where.

    milp     least load of the busiest machine, then the fewest copies; scipy's solver, within a limit of nodes
    greedy   the heaviest expert first, to the machines with the least load; where the solver has no better answer;
             the largest first, then with fewer copies, where that leaves somebody without room. An expert with more
             than a machine's part of the load gets copies: so many that none has more, which evens out loads; or, not
             `even`, one for each whole part, so that fewer experts share a machine, and spare machines to the busiest

Nothing here looks at a clock: a busy machine gives the same answer, later.

Knows nothing about machines beyond the bytes that one can hold.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from coterie.core.errors import CapacityError
from coterie.plan.mix import F64, I64
from coterie.plan.workload import Workload

# Of the solver's tree. The first has nearly all of the gain, in 0.1 to 1.3 s of processor time up to MAX_BINARIES.
SOLVER_NODES = 1
MAX_BINARIES = 1200  # above, the solver takes seconds
COPY_COST = 1e-3  # of a copy, in shares of the mean load: copies only where they even out the load
GAP = 0.01  # of the least load: nearer to it the solver need not come
SAME = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """`share` [experts, machines]: which part of an expert's requests a machine serves; it holds those above 0.

    `method` is milp or greedy; `why` says why the solver was not used or not followed, empty where it was.
    """

    share: F64
    method: str
    why: str = ""

    @property
    def machines(self) -> int:
        """How many."""
        return int(self.share.shape[1])

    @property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """The experts of each machine, by number."""
        return tuple(tuple(np.flatnonzero(self.share[:, m] > SAME).tolist()) for m in range(self.machines))

    @property
    def replicated(self) -> tuple[int, ...]:
        """Experts that several machines hold."""
        return tuple(np.flatnonzero((self.share > SAME).sum(axis=1) > 1).tolist())

    def loads(self, load: F64) -> F64:
        """Each machine's part of the load."""
        parts: F64 = load @ self.share
        return parts

    def split_machine(self, busy: int, load: F64) -> Placement:
        """With one machine more, which takes half of what one of these does, and nobody has more to do by it.

        Of several experts it takes some, the heaviest of them shared out in turns; of one, half of the requests.
        """
        share = np.column_stack([self.share, np.zeros(len(self.share))])
        here = np.flatnonzero(self.share[:, busy] > SAME)
        if len(here) == 1:
            share[here, -1] = share[here, busy] = self.share[here, busy] / 2
            return replace(self, share=share)
        parts, sums = self.share[here, busy] * load[here], np.zeros(2)
        for at in np.argsort(-parts, kind="stable"):
            to = int(sums[1] < sums[0])
            sums[to] += parts[at]
            if to:
                share[here[at], [busy, -1]] = 0.0, self.share[here[at], busy]
        return replace(self, share=share)

    def split(self, workload: Workload) -> tuple[I64, ...]:
        """The requests of each machine: an expert's requests go to its machines in turn, in proportion."""
        at = np.zeros(len(workload), dtype=np.int64)
        for expert in range(len(self.share)):
            mine = np.flatnonzero(workload.asked == expert)
            ends = np.cumsum(self.share[expert])
            # Places on [0, 1) that are even at any length: multiples of the golden ratio's fraction.
            even = (0.5 + np.arange(len(mine)) * 0.6180339887498949) % 1.0 * ends[-1]
            at[mine] = np.minimum(np.searchsorted(ends, even, side="right"), self.machines - 1)
        return tuple(np.flatnonzero(at == m) for m in range(self.machines))


def place(
    sizes: Sequence[int], load: F64, machines: int, room_bytes: int, solver: bool = True, even: bool = True
) -> Placement:
    """Place experts of these sizes and loads; `even` is greedy's.

    Raises CapacityError, with what lacks, where it cannot be done.
    """
    _check_room(sizes, machines, room_bytes)
    if machines == 1:
        return Placement(np.ones((len(sizes), 1)), "greedy", "one machine leaves nothing to choose")
    greedy = _greediest(sizes, load, machines, room_bytes, even)
    if not solver:
        return greedy
    if len(sizes) * machines > MAX_BINARIES:
        fact = f"{len(sizes)} experts on {machines} machines are more than the solver manages in a second or two"
        return Placement(greedy.share, "greedy", fact)
    if not greedy.replicated and greedy.loads(load).max() <= load.sum() / machines * (1 + GAP):
        return Placement(greedy.share, "greedy", f"no solver can even the load out by more than {GAP:.0%}")
    solved = _milp(np.asarray(sizes, dtype=float), load, machines, room_bytes)
    if solved is None:
        return Placement(greedy.share, "greedy", "the solver found nothing")
    if solved.loads(load).max() > greedy.loads(load).max() * (1 + SAME):
        return Placement(greedy.share, "greedy", "it is better than what the solver found")
    return solved


def _check_room(sizes: Sequence[int], machines: int, room_bytes: int) -> None:
    where = f"placement on {machines} machine{'s' if machines > 1 else ''}"
    largest, total = max(sizes), sum(sizes)
    if largest > room_bytes:
        levers = ("smaller experts", "a machine with more memory")
        raise CapacityError(where, "the largest expert", largest, max(room_bytes, 0), levers)
    # Whole experts: so many of the largest fit on each machine at least.
    if total > room_bytes * machines:
        levers = (f"{ceil(total / room_bytes)} machines", "fewer experts")
        raise CapacityError(where, "one copy of every expert", total, room_bytes * machines, levers)


def _greediest(sizes: Sequence[int], load: F64, machines: int, room_bytes: int, even: bool) -> Placement:
    """Greedy, with as many copies of an expert as leave a piece of room for everybody. Raises CapacityError."""
    mean = load.sum() / machines
    parts = np.round(load / mean, 6) if mean > 0 else np.zeros(len(sizes))
    wanted = np.maximum(1, np.ceil(parts) if even else np.floor(parts)).astype(int)
    while not even and wanted.sum() < machines:
        wanted[np.argmax(parts / wanted)] += 1
    heaviest = sorted(range(len(sizes)), key=lambda e: (-load[e], -sizes[e]))
    orders = heaviest, sorted(heaviest, key=lambda e: -sizes[e])  # small ones may be in the way of a large one
    most = machines
    while True:
        for order in orders:
            try:
                return _greedy(sizes, load, machines, room_bytes, order, np.minimum(wanted, most).tolist())
            except CapacityError:
                if most == 1 and order is orders[-1]:
                    raise
        most //= 2


def _greedy(
    sizes: Sequence[int], load: F64, machines: int, room_bytes: int, order: Sequence[int], wanted: Sequence[int]
) -> Placement:
    """One after the other, each on so many machines as are `wanted`, if there is room."""
    share = np.zeros((len(sizes), machines))
    free = np.full(machines, float(room_bytes))
    busy = np.zeros(machines)
    still = sum(sizes)
    for expert in order:
        size = sizes[expert]
        still -= size
        copies = wanted[expert]
        fitting = [m for m in np.lexsort((-free, busy)).tolist() if free[m] >= size]
        # A copy more must leave room for everybody's first.
        while copies > 1 and (len(fitting) < copies or free.sum() - copies * size < still):
            copies -= 1
        if not fitting:
            levers = ("one more machine", "experts of equal sizes")
            raise CapacityError(f"placement on {machines} machines", "an expert", size, int(free.max()), levers)
        chosen = fitting[:copies]
        parts = _level(busy[chosen], float(load[expert]))
        share[expert, chosen] = parts
        free[chosen] -= size
        busy[chosen] += parts * load[expert]
    return Placement(share, "greedy")


def _level(busy: F64, amount: float) -> F64:
    """Shares of an amount that bring several machines as near to one level as it goes."""
    if amount <= 0 or len(busy) == 1:
        return np.full(len(busy), 1 / len(busy))
    at = np.sort(busy)
    # The level to which the amount fills the least busy 1, 2, ... of them; it is that of as many as lie below it.
    levels = (amount + np.cumsum(at)) / np.arange(1, len(at) + 1)
    level = levels[np.flatnonzero(levels > at)[-1]]
    parts = np.maximum(level - busy, 0)
    # Every chosen machine serves a little, or its copy would be for nothing.
    parts = np.maximum(parts, amount * 1e-3)
    shares: F64 = parts / parts.sum()
    return shares


@contextmanager
def _no_stdout() -> Iterator[None]:
    """HiGHS writes a line to file descriptor 1 where it repairs an answer, asked or not; JSON is printed there."""
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _milp(sizes: F64, load: F64, machines: int, room_bytes: int) -> Placement | None:
    """Variables: parts x [E, M], copies y [E, M], the busiest machine's load t. None without scipy or an answer."""
    try:
        optimize: Any = importlib.import_module("scipy.optimize")
        sparse: Any = importlib.import_module("scipy.sparse")
    except ImportError:
        return None
    experts, cells = len(sizes), len(sizes) * machines
    mean = max(float(load.sum()) / machines, 1e-30)
    weight = load / mean
    each, rows = sparse.identity(cells), np.repeat(np.arange(experts), machines)
    columns = np.tile(np.arange(machines), experts)
    by_expert = sparse.csr_matrix((np.ones(cells), (rows, np.arange(cells))), shape=(experts, cells))
    by_machine = sparse.csr_matrix((weight[rows], (columns, np.arange(cells))), shape=(machines, cells))
    bytes_of = sparse.csr_matrix((sizes[rows] / room_bytes, (columns, np.arange(cells))), shape=(machines, cells))
    none, zero = sparse.csr_matrix((machines, cells)), sparse.csr_matrix((cells, 1))
    constraints = [
        optimize.LinearConstraint(sparse.hstack([by_expert, sparse.csr_matrix((experts, cells + 1))]), 1, 1),
        optimize.LinearConstraint(sparse.hstack([each, -each, zero]), -np.inf, 0),
        optimize.LinearConstraint(sparse.hstack([by_machine, none, -np.ones((machines, 1))]), -np.inf, 0),
        optimize.LinearConstraint(sparse.hstack([none, bytes_of, sparse.csr_matrix((machines, 1))]), -np.inf, 1),
    ]
    cost = np.concatenate([np.zeros(cells), np.full(cells, COPY_COST), [1.0]])
    whole = np.concatenate([np.zeros(cells), np.ones(cells), [0]])
    bounds = optimize.Bounds(np.zeros(2 * cells + 1), np.concatenate([np.ones(2 * cells), [np.inf]]))
    options = {"node_limit": SOLVER_NODES, "mip_rel_gap": GAP}
    with _no_stdout():
        found = optimize.milp(cost, constraints=constraints, integrality=whole, bounds=bounds, options=options)
    if found.x is None:
        return None
    share = found.x[:cells].reshape(experts, machines)
    share[share < SAME] = 0.0
    return Placement(share / share.sum(axis=1, keepdims=True), "milp")

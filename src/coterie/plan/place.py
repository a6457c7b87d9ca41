"""Placement: which experts each of several identical machines holds, and how an expert's load is divided among them.

    milp     minimises the load of the busiest machine, then the number of copies; scipy's solver with a node limit
    greedy   heaviest expert first, to the machines with the least load; used if the solver has no better answer. If an
             expert does not fit, tries the largest first, then fewer copies. An expert with more than one machine's
             share of the load is replicated: rounded up (`even`), which balances loads; or rounded down, so that fewer
             experts share a machine, with spare machines going to the busiest expert

The limits are not in seconds, so the result does not depend on how busy this computer is.

Knows nothing about machines beyond the bytes that each can hold.
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

# Branch-and-bound node limit. The root node has nearly all of the gain, in 0.1 to 1.3 s of CPU time up to MAX_BINARIES.
SOLVER_NODES = 1
MAX_BINARIES = 1200  # beyond this the solver takes seconds
COPY_COST = 1e-3  # penalty per copy, relative to the mean load: replicate only if that balances the load
GAP = 0.01  # relative optimality gap
SAME = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """`share` [experts, machines]: the fraction of an expert's requests that a machine serves; it holds those above 0.

    `method`: milp or greedy; `why`: why the solver's answer was not used, else empty.
    """

    share: F64
    method: str
    why: str = ""

    @property
    def machines(self) -> int:
        """Number of machines."""
        return int(self.share.shape[1])

    @property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """The experts on each machine, by number."""
        return tuple(tuple(np.flatnonzero(self.share[:, m] > SAME).tolist()) for m in range(self.machines))

    @property
    def replicated(self) -> tuple[int, ...]:
        """Experts that are on several machines."""
        return tuple(np.flatnonzero((self.share > SAME).sum(axis=1) > 1).tolist())

    def loads(self, load: F64) -> F64:
        """Each machine's load."""
        parts: F64 = load @ self.share
        return parts

    def split_machine(self, busy: int, load: F64) -> Placement:
        """Add a machine that takes over half of the load of machine `busy`; no other machine's load changes.

        It takes some of several experts, dealt out by decreasing load, or half the requests of a single one.
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
        """The indices of each machine's requests; an expert's requests are interleaved over its machines by share."""
        at = np.zeros(len(workload), dtype=np.int64)
        for expert in range(len(self.share)):
            mine = np.flatnonzero(workload.expert_index == expert)
            ends = np.cumsum(self.share[expert])
            # A low-discrepancy sequence on [0, 1): multiples of the golden ratio's fractional part.
            even = (0.5 + np.arange(len(mine)) * 0.6180339887498949) % 1.0 * ends[-1]
            at[mine] = np.minimum(np.searchsorted(ends, even, side="right"), self.machines - 1)
        return tuple(np.flatnonzero(at == m) for m in range(self.machines))


def place(
    sizes: Sequence[int], load: F64, machines: int, room_bytes: int, solver: bool = True, even: bool = True
) -> Placement:
    """Place experts of these sizes and loads; `even`: replication rule of the greedy method.

    Raises CapacityError, with the missing bytes, if they do not fit.
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
    # A necessary condition; greedy detects the rest.
    if total > room_bytes * machines:
        levers = (f"{ceil(total / room_bytes)} machines", "fewer experts")
        raise CapacityError(where, "one copy of every expert", total, room_bytes * machines, levers)


def _greediest(sizes: Sequence[int], load: F64, machines: int, room_bytes: int, even: bool) -> Placement:
    """The greedy placement with as many copies as leave room for all experts. Raises CapacityError."""
    mean = load.sum() / machines
    parts = np.round(load / mean, 6) if mean > 0 else np.zeros(len(sizes))
    wanted = np.maximum(1, np.ceil(parts) if even else np.floor(parts)).astype(int)
    while not even and wanted.sum() < machines:
        wanted[np.argmax(parts / wanted)] += 1
    heaviest = sorted(range(len(sizes)), key=lambda e: (-load[e], -sizes[e]))
    orders = heaviest, sorted(heaviest, key=lambda e: -sizes[e])  # small experts may block a large one
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
    """Place experts in this order, each on up to `wanted` machines, as far as there is room."""
    share = np.zeros((len(sizes), machines))
    free = np.full(machines, float(room_bytes))
    busy = np.zeros(machines)
    still = sum(sizes)
    for expert in order:
        size = sizes[expert]
        still -= size
        copies = wanted[expert]
        fitting = [m for m in np.lexsort((-free, busy)).tolist() if free[m] >= size]
        # Further copies must leave room for the first copy of every expert.
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
    """Divide an amount over machines so that their loads become as equal as possible; returns shares."""
    if amount <= 0 or len(busy) == 1:
        return np.full(len(busy), 1 / len(busy))
    at = np.sort(busy)
    # Water filling: the level if only the least busy 1, 2, ... machines are filled; valid if these lie below it.
    levels = (amount + np.cumsum(at)) / np.arange(1, len(at) + 1)
    level = levels[np.flatnonzero(levels > at)[-1]]
    parts = np.maximum(level - busy, 0)
    # Every chosen machine gets a little, else its copy would be useless.
    parts = np.maximum(parts, amount * 1e-3)
    shares: F64 = parts / parts.sum()
    return shares


@contextmanager
def _no_stdout() -> Iterator[None]:
    """Silence file descriptor 1: HiGHS always prints a line when it repairs a solution, which would corrupt JSON."""
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _milp(sizes: F64, load: F64, machines: int, room_bytes: int) -> Placement | None:
    """Variables: fractions x [E, M], copies y [E, M], the largest load t. None without scipy or a solution."""
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

"""Assigns symbols to the near tier, with addresses, or spills them to the far tier.

    paper     the paper's rule: spill the symbol that moves the fewest bytes, until the rest fits (section V-A)
    greedy    keep symbols by bytes moved per byte and step of lifetime, as long as they fit
    optimal   maximise the bytes moved in the near tier, by mixed integer programming (extra `plan`), for small cases

Addresses are assigned first-fit in three orders (start, size, size times lifetime); the lowest peak wins.
Knows nothing about graphs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.core.errors import CapacityError, UsageError
from coterie.dataflow.lifetime import Symbol, live_bytes

ALIGN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Packed:
    """An address for each symbol. `bound_bytes`: the largest number of bytes alive at once, a lower bound."""

    offsets: Mapping[str, int]
    peak_bytes: int
    bound_bytes: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """A transfer of a spilled symbol to or from the far tier, for a step."""

    step: int
    symbol: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Near and far symbols, addresses of the near ones, live bytes by step, and the cost of spilling."""

    how: str
    near: tuple[Symbol, ...]
    far: tuple[Symbol, ...]
    packed: Packed
    unshared_bytes: int
    timeline: tuple[int, ...]
    spilled_bytes: int
    spilled_s: float

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        """Transfers of spilled symbols by step: reads happen before it, writes after it."""
        moves = (Fetch(step, symbol.name, size) for symbol in self.far for step, size in symbol.moves if size)
        return tuple(sorted(moves, key=lambda f: (f.step, f.symbol)))

    @property
    def top(self) -> tuple[Symbol, ...]:
        """The ten largest symbols."""
        return tuple(sorted((*self.near, *self.far), key=lambda s: (-s.size_bytes, s.name))[:10])


def plan_memory(
    symbols: Sequence[Symbol], near_bytes: int, far_bytes: int, far_bytes_per_s: float, how: str = "greedy"
) -> MemoryPlan:
    """Place symbols in two tiers. Raises UsageError for an unknown `how`, CapacityError if the far tier is full."""
    if how not in WAYS:
        raise UsageError("memory", f"there is no way {how!r} to spill", f"use one of {', '.join(WAYS)}")
    steps = max((symbol.last for symbol in symbols), default=0) + 1
    kept = WAYS[how](symbols, near_bytes, steps)
    near = tuple(symbol for symbol in symbols if symbol.name in kept)
    packed = pack(near)
    # First-fit fragments: spill the least used symbols until the addresses fit too.
    while packed.peak_bytes > near_bytes and near:
        dropped = min(near, key=lambda s: (s.moved_bytes / max(1, s.size_bytes * s.steps), s.name))
        near = tuple(symbol for symbol in near if symbol is not dropped)
        packed = pack(near)
    far = tuple(symbol for symbol in symbols if symbol not in near)
    demand = max(live_bytes(far, steps), default=0)
    if demand > far_bytes:
        levers = ("use a machine with more memory", "shard the model over more sockets", "use a smaller batch")
        raise CapacityError("memory", "what does not lie in the near tier", demand, far_bytes, levers)
    spilled = sum(symbol.moved_bytes for symbol in far)
    cost_s = spilled / far_bytes_per_s if spilled else 0.0
    total = sum(_aligned(symbol.size_bytes) for symbol in symbols)
    return MemoryPlan(how, near, far, packed, total, tuple(live_bytes(symbols, steps)), spilled, cost_s)


def pack(symbols: Sequence[Symbol]) -> Packed:
    """Assign addresses such that symbols that are alive at the same time do not overlap."""
    orders: tuple[Callable[[Symbol], Any], ...] = (
        lambda s: (s.first, -s.size_bytes, s.name),
        lambda s: (-s.size_bytes, s.first, s.name),
        lambda s: (-s.size_bytes * s.steps, s.name),
    )
    steps = max((symbol.last for symbol in symbols), default=0) + 1
    bound = max(live_bytes(symbols, steps), default=0)
    best: tuple[int, dict[str, int]] | None = None
    for order in orders:
        found = _first_fit(sorted(symbols, key=order))
        if best is None or found[0] < best[0]:
            best = found
        if best[0] <= bound:
            break
    return Packed(best[1] if best else {}, best[0] if best else 0, bound)


def _first_fit(symbols: Sequence[Symbol]) -> tuple[int, dict[str, int]]:
    placed: list[tuple[int, int, Symbol]] = []
    offsets: dict[str, int] = {}
    for symbol in symbols:
        at = 0
        for start, end, _ in sorted((p for p in placed if p[2].overlaps(symbol)), key=lambda p: p[0]):
            if start - at >= symbol.size_bytes:
                break
            at = max(at, end)
        placed.append((at, at + _aligned(symbol.size_bytes), symbol))
        offsets[symbol.name] = at
    return max((end for _, end, _ in placed), default=0), offsets


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES


def _paper(symbols: Sequence[Symbol], near_bytes: int, steps: int) -> set[str]:
    kept = sorted(symbols, key=lambda s: (-s.moved_bytes, s.name))
    live = live_bytes(kept, steps)
    while kept and max(live) > near_bytes:
        gone = kept.pop()
        for step in range(gone.first, gone.last + 1):
            live[step] -= gone.size_bytes
    return {symbol.name for symbol in kept}


def _greedy(symbols: Sequence[Symbol], near_bytes: int, steps: int) -> set[str]:
    live = [0] * steps
    kept = set()
    for symbol in sorted(symbols, key=lambda s: (-s.moved_bytes / max(1, s.size_bytes * s.steps), s.name)):
        if max(live[symbol.first : symbol.last + 1]) + symbol.size_bytes <= near_bytes:
            kept.add(symbol.name)
            for step in range(symbol.first, symbol.last + 1):
                live[step] += symbol.size_bytes
    return kept


def _optimal(symbols: Sequence[Symbol], near_bytes: int, steps: int) -> set[str]:
    try:
        optimize: Any = importlib.import_module("scipy.optimize")
        sparse: Any = importlib.import_module("scipy.sparse")
    except ModuleNotFoundError as error:
        raise UsageError("memory", "the optimal plan needs scipy", "install coterie[plan], or use greedy") from error
    if not symbols:
        return set()
    # The peak always occurs at a step in which some lifetime begins.
    marks = sorted({symbol.first for symbol in symbols})
    unit = max(1, near_bytes)
    rows = [
        (r, c, s.size_bytes / unit)
        for c, s in enumerate(symbols)
        for r, m in enumerate(marks)
        if s.first <= m <= s.last
    ]
    matrix = sparse.csr_array(
        ([value for *_, value in rows], ([r for r, *_ in rows], [c for _, c, _ in rows])), (len(marks), len(symbols))
    )
    most = max((symbol.moved_bytes for symbol in symbols), default=1) or 1
    found = optimize.milp(
        [-symbol.moved_bytes / most for symbol in symbols],
        constraints=optimize.LinearConstraint(matrix, ub=near_bytes / unit),
        integrality=1,
        bounds=optimize.Bounds(0, 1),
    )
    return {symbol.name for symbol, x in zip(symbols, found.x, strict=True) if x > 0.5}


WAYS: Mapping[str, Callable[[Sequence[Symbol], int, int], set[str]]] = {
    "paper": _paper,
    "greedy": _greedy,
    "optimal": _optimal,
}

"""Partitions a graph into sections, maps each distinct one once, and gives a reason for every boundary.

    unfused    every op is a section: the baseline
    rule sets  the regions of a rule set of graph/fuse.py
    stage      every stage of the graph (embedding, a decoder layer, head) is a section
    best       within each stage, the fastest partition that fits (partition.py)

Knows nothing about devices or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from coterie.core.errors import CapacityError, UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.chip import Chip
from coterie.dataflow.estimate import Estimate
from coterie.dataflow.mapping import Mapped, Misfit, map_section
from coterie.dataflow.partition import best_cut, members
from coterie.dataflow.walk import walk
from coterie.graph.fuse import RULE_SETS, fuse
from coterie.graph.ir import Graph, Op, signature

HOW = ("best", "stage", "unfused", *RULE_SETS)


@dataclass(frozen=True, slots=True)
class Boundary:
    """Why section `after` is not merged with `before`; `kind`: layer, data-dependent, capacity, cost or rule."""

    before: str
    after: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sections:
    """Sections in execution order. The i-th section is an instance of `mapped[index[i]]`."""

    graph: str
    how: str
    mapped: tuple[Mapped, ...]
    index: tuple[int, ...]
    names: tuple[str, ...]
    boundaries: tuple[Boundary, ...]

    @property
    def calls(self) -> tuple[tuple[int, int], ...]:
        """Runs of identical sections: (index in `mapped`, count). With kernel looping, each is a single call."""
        return tuple((which, len(list(run))) for which, run in groupby(self.index))

    def seconds(self, looping: bool = False) -> float:
        """Time of a step. Each section starts a kernel; its program is loaded only if the previous one differs.

        With looping, a run of identical sections pays start, fill and drain once.
        """
        total = 0.0
        for which, count in self.calls:
            part = self.mapped[which]
            repeat_s = part.interval_s if looping else part.chip.start_s(0.0) + part.work_s
            total += part.l1_s + (count - 1) * repeat_s
        return total

    @property
    def launches(self) -> int:
        """Kernel launches per step without looping."""
        return len(self.index)


def sections_of(
    graph: Graph, sizes: Sizes, chip: Chip, how: str = "best", ranks: int = 1, share_equal: bool = True
) -> Sections:
    """Partition a graph and map its sections. Identical ones are mapped once, unless `share_equal` is off (for tests).

    Raises UsageError for an unknown `how`, UnsupportedError for an op without a normal form, CapacityError for an op
    that does not fit even by itself.
    """
    if how not in HOW:
        raise UsageError("sections", f"there is no way {how!r} to cut a graph", f"use one of {', '.join(HOW)}")
    cuts: dict[object, _Cut] = {}
    first: dict[object, int] = {}
    mapped: list[Mapped] = []
    index: list[int] = []
    names: list[str] = []
    boundaries: list[Boundary] = []
    for stage, ops in _stages(graph):
        key: object = structure(graph, ops) if share_equal else stage
        if names:
            reason = "one program serves every equal layer, which one across layers could not"
            boundaries.append(Boundary(names[-1], stage, "layer", reason))
        if key not in cuts:
            cuts[key], first[key] = _cut(graph, ops, sizes, chip, how, ranks), len(mapped)
            mapped += cuts[key].mapped
            boundaries += cuts[key].inner
        count = len(cuts[key].mapped)
        index += range(first[key], first[key] + count)
        names += [stage] if count == 1 else [f"{stage}.{n}" for n in range(count)]
    return Sections(graph.name, how, tuple(mapped), tuple(index), tuple(names), tuple(boundaries))


@dataclass(frozen=True, slots=True)
class _Cut:
    """The sections of one stage, and the boundaries between them."""

    mapped: tuple[Mapped, ...]
    inner: tuple[Boundary, ...] = ()


def _stages(graph: Graph) -> list[tuple[str, tuple[Op, ...]]]:
    return [(stage, tuple(ops)) for stage, ops in groupby(graph.ops, key=lambda op: op.stage)]


def _cut(graph: Graph, ops: tuple[Op, ...], sizes: Sizes, chip: Chip, how: str, ranks: int) -> _Cut:
    stage = ops[0].stage
    if how == "best":
        return _best(graph, ops, sizes, chip, ranks)
    if how == "unfused":
        parts, reason = [[op] for op in ops], "every op is a section of its own"
    elif how == "stage":
        parts, reason = [list(ops)], ""
    else:
        parts = [list(region.ops) for region in fuse(graph, how) if region.stage == stage]
        reason = f"rule set {how}"
    names = [f"{stage}.{n}" for n in range(len(parts))]
    inner = tuple(Boundary(a, b, "rule", reason) for a, b in pairwise(names))
    for part in parts:
        if barriers := walk(graph, part, sizes).barriers:
            fact = f"it cannot be one section: {barriers[0].reason}"
            raise UsageError(f"{graph.name}: {stage}", fact, "cut before that op, or let coterie choose the sections")
    return _Cut(tuple(_fitting(map_section(graph, part, sizes, chip, ranks=ranks), chip) for part in parts), inner)


def _best(graph: Graph, ops: tuple[Op, ...], sizes: Sizes, chip: Chip, ranks: int) -> _Cut:
    estimate = Estimate(graph, ops, sizes, chip)
    known: dict[int, Mapped | Misfit] = {}

    def laid_out(mask: int) -> Mapped | Misfit:
        if mask not in known:
            known[mask] = map_section(graph, [ops[at] for at in members(mask)], sizes, chip, ranks=ranks)
        return known[mask]

    def price(mask: int) -> float | None:
        return None if isinstance(known.get(mask), Misfit) else estimate(mask)

    pairs = [(edge.src, edge.dst) for edge in walk(graph, ops, sizes).edges]
    while (cut := best_cut(len(ops), pairs, price)) is not None:
        if not any(isinstance(laid_out(mask), Misfit) for mask in cut):
            found = [_why(graph, ops, (a, b), sizes, laid_out) for a, b in pairwise(cut)]
            stage = ops[0].stage
            named = (replace(why, before=f"{stage}.{n}", after=f"{stage}.{n + 1}") for n, why in enumerate(found))
            return _Cut(tuple(_fitting(laid_out(mask), chip) for mask in cut), tuple(named))
    worst = next(at for at in range(len(ops)) if isinstance(laid_out(1 << at), Misfit) or estimate(1 << at) is None)
    _fitting(laid_out(1 << worst), chip)
    raise AssertionError("an op that fits alone was refused alone")


def _why(
    graph: Graph, ops: tuple[Op, ...], ends: tuple[int, int], sizes: Sizes, laid_out: Callable[[int], Mapped | Misfit]
) -> Boundary:
    """Why two consecutive sections were not merged."""
    barriers = walk(graph, [ops[at] for at in members(ends[0] | ends[1])], sizes).barriers
    if barriers:
        return Boundary("", "", "data-dependent", barriers[0].reason)
    whole = laid_out(ends[0] | ends[1])
    if isinstance(whole, Misfit):
        return Boundary("", "", "capacity", str(whole))
    seconds = sum(part.l1_s for mask in ends if isinstance(part := laid_out(mask), Mapped))
    again = f", with {len(whole.streamed)} values read again for each of {whole.tiles} tiles" if whole.streamed else ""
    reason = f"together {whole.l1_s * 1e6:.1f} us{again}; apart {seconds * 1e6:.1f} us"
    return Boundary("", "", "capacity" if whole.streamed else "cost", reason)


def _fitting(found: Mapped | Misfit, chip: Chip) -> Mapped:
    if isinstance(found, Mapped):
        return found
    if found.pcus > found.bound_pcus:
        raise UsageError(found.name, f"it fits nowhere: {found}", "cut it, or use a machine with more units")
    demand, bound = found.pmus * chip.grid.pmu_bytes, found.bound_pmus * chip.grid.pmu_bytes
    levers = ("shard the model over more sockets", "use a smaller batch", "cut it into more sections")
    raise CapacityError(
        f"section {found.name}", f"what it holds on chip (the largest: {found.largest})", demand, bound, levers
    )


def structure(graph: Graph, ops: Sequence[Op]) -> object:
    """A key that is equal for groups of ops that differ only in names and layer number."""
    numbers: dict[str, int] = {}
    key: list[object] = []
    inside = {op.name for op in ops}
    read_outside = {n for op in graph.ops if op.name not in inside for n in op.inputs}
    for op in ops:
        attrs: Mapping[str, object] = {k: v for k, v in op.attrs.items() if k != "layer"}
        key.append((op.kind, tuple(sorted(attrs.items()))))
        for name in (*op.inputs, "->", *op.outputs):
            fresh = name not in numbers
            number = numbers.setdefault(name, len(numbers))
            key.append((number, signature(graph.values.get(name)), name in read_outside) if fresh else number)
    return tuple(key)

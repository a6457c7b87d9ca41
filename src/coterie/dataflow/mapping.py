"""Maps a section to one socket: tiles, PCUs per stage, PMUs per buffer, and its time at increasing fidelity.

    L0   flops / peak, bytes / peak bandwidth: a true lower bound
    L1   start + max(pipeline fill + slowest stage x tiles, bytes / achieved bandwidth, collectives)
    L2   start + simulated tile streams, with bounded FIFOs and shared bandwidth (network.py); for a placed section,
         including contention on the busiest on-chip link (place.py)

The tile size is found by trying divisors of the walked rows: small tiles fill the pipeline sooner and need less SRAM,
large ones waste less of an array. A section is limited by PCUs and PMUs; the maximal number of off-chip streams is not
published, and so not modelled. Knows nothing about which ops belong in a section (sections.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coterie.core.shapes import Sizes
from coterie.dataflow.balance import Balance, balance
from coterie.dataflow.chip import Chip
from coterie.dataflow.memory import Buffer, depths, flow_buffers, held_buffers
from coterie.dataflow.network import Transfers, Wire, network
from coterie.dataflow.share import simulate_shared
from coterie.dataflow.stage import Split, Stage, Unit, cycles
from coterie.dataflow.stage_rows import stages_of
from coterie.dataflow.stream import Network, first_s, steady_s
from coterie.dataflow.traffic import Flow, Stream, extra_bytes, flows_of, section_cost, streams_of
from coterie.dataflow.walk import Walk, walk
from coterie.graph.cost import Cost
from coterie.graph.ir import Graph, Op

MAX_TILES = 512
CHAIN_SHARE = 0.05  # of the memory time per tile: stages below this do not benefit from more PCUs


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapped section. `tiles` per pass; `streamed`: values not kept on chip, of which each tile reads its part."""

    name: str
    ops: tuple[Op, ...]
    walk: Walk
    stages: tuple[Stage, ...]
    flows: tuple[Flow, ...]
    streams: tuple[Stream, ...]
    tiles: int
    splits: tuple[Split, ...]
    balance: Balance
    buffers: tuple[Buffer, ...]
    streamed: frozenset[str]
    service_s: tuple[tuple[float, ...], ...]
    cost: Cost
    chip: Chip
    ranks: int = 1

    @property
    def pcus(self) -> int:
        """PCUs in use."""
        return self.balance.pcus

    @property
    def pmus(self) -> int:
        """PMUs in use."""
        return sum(buffer.pmus for buffer in self.buffers)

    @property
    def sram_bytes(self) -> int:
        """Bytes held on chip."""
        return sum(buffer.size_bytes for buffer in self.buffers)

    @property
    def memory_bytes(self) -> int:
        """Off-chip bytes per pass: the section's cost, plus repeated reads of streamed values."""
        again = (extra_bytes(s, self.stages[s.stage], self.tiles) for s in self.streams if s.value in self.streamed)
        return self.cost.total_bytes + sum(again)

    @property
    def memory_s(self) -> float:
        """Time of the off-chip bytes at achieved bandwidth."""
        return self.memory_bytes / self.chip.memory_bytes_per_s

    @property
    def link_s(self) -> float:
        """Time of the collectives."""
        return sum(sum(s) for s, stage in zip(self.service_s, self.stages, strict=True) if stage.unit is Unit.LINK)

    @property
    def pipe_s(self) -> float:
        """Time of the stages without memory: fill, slowest stage, drain."""
        return steady_s(self.pipeline)

    @property
    def start_s(self) -> float:
        """Kernel start time, which grows with the size of the configuration."""
        return self.chip.start_s(self.pcus / self.chip.grid.pcus)

    @property
    def work_s(self) -> float:
        """L1 without the start."""
        return max(self.pipe_s, self.memory_s, self.link_s)

    @property
    def l0_s(self) -> float:
        """Roofline: a lower bound."""
        compute = self.cost.flops / self.chip.peak_flops_per_s
        return max(compute, self.cost.total_bytes / self.chip.peak_memory_bytes_per_s)

    @property
    def l1_s(self) -> float:
        """Start and work."""
        return self.start_s + self.work_s

    @property
    def interval_s(self) -> float:
        """Time between passes of a looped section, when fill and drain overlap with neighbouring passes.

        Each pass depends on the one before, so its first tile starts only once that one's first tile is done.
        """
        slowest = max((sum(s) for s in self.service_s), default=0.0)
        return max(slowest, self.memory_s, self.link_s, first_s(self.pipeline))

    @property
    def bound(self) -> str:
        """What takes longest: the slowest stage's name, `memory`, `links` or `fill`."""
        times = {"memory": self.memory_s, "links": self.link_s}
        if self.stages:
            busiest = sum(self.service_s[self.slowest])
            times |= {self.stages[self.slowest].name: busiest, "fill": self.pipe_s - busiest}
        return max(times, key=lambda name: times[name])

    @property
    def slowest(self) -> int:
        """The stage with the most work per PCU."""
        return max(range(len(self.stages)), key=lambda i: sum(self.service_s[i]))

    @property
    def pipeline(self) -> Network:
        """The network of stages alone, with unbounded FIFOs and no off-chip transfers."""
        return network(self.stages, self.flows, self.service_s)

    def machine(self, wires: Sequence[Wire] = ()) -> Network:
        """The full network: stages, FIFOs of their buffers' depths, off-chip transfers, and on-chip link traffic."""
        deep = depths(self.flows, len(self.stages))
        transfers = Transfers(self.streams, self.streamed, self.chip.memory_bytes_per_s)
        return network(self.stages, self.flows, self.service_s, deep, transfers, wires)

    def l2_s(self, wires: Sequence[Wire] = ()) -> float:
        """Start plus the simulated tile streams with shared bandwidth."""
        run, _ = simulate_shared(self.machine(wires))
        return self.start_s + run.makespan_s


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a section does not fit: its minimal demand and the available units."""

    name: str
    pcus: int
    bound_pcus: int
    pmus: int
    bound_pmus: int
    largest: str

    def __str__(self) -> str:
        if self.pcus > self.bound_pcus:
            return f"{self.pcus} stages need a PCU each, {self.pcus - self.bound_pcus} more than there are"
        return (
            f"its buffers need {self.pmus} PMUs, {self.pmus - self.bound_pmus} more than there are "
            f"(the largest is {self.largest})"
        )


def map_section(
    graph: Graph, ops: Sequence[Op], sizes: Sizes, chip: Chip, *, ranks: int = 1, tiles: int | None = None
) -> Mapped | Misfit:
    """Map ops as one section of one socket, with the fastest tile count or the given one.

    Returns a Misfit for a section that does not fit. Raises UnsupportedError for an op without a normal form.
    """
    steps = walk(graph, ops, sizes)
    stages = stages_of(graph, steps, sizes)
    streams = streams_of(graph, steps, stages, sizes) if stages else ()
    flows = flows_of(graph, steps, stages, sizes) if stages else ()
    cost = section_cost(graph, ops, sizes)
    name = ops[0].stage if len({op.stage for op in ops}) == 1 else f"{ops[0].stage}..{ops[-1].stage}"
    base = Mapped(
        name, tuple(ops), steps, stages, flows, streams, 1, (), Balance((), 0, 0, 0.0), (), frozenset(), (), cost, chip
    )
    base = replace(base, ranks=ranks)
    rows = max((stage.rows for stage in stages), default=1)
    tried = [_with_tiles(base, count) for count in ([tiles] if tiles else tile_counts(rows))]
    fitting = [found for found in tried if isinstance(found, Mapped)]
    if fitting:
        return min(fitting, key=lambda found: (found.work_s, found.pmus))
    misfits = (found for found in tried if isinstance(found, Misfit))
    return min(misfits, key=lambda found: (max(0, found.pcus - found.bound_pcus), found.pmus))


def tile_counts(rows: int) -> list[int]:
    """Divisors of the walked rows to try, about one per factor of two."""
    divisors = [n for n in range(1, min(rows, MAX_TILES) + 1) if rows % n == 0]
    chosen, last = [], 0
    for n in divisors:
        if n >= 2 * last or n == divisors[-1]:
            chosen.append(n)
            last = n
    return chosen


def _with_tiles(base: Mapped, tiles: int) -> Mapped | Misfit:
    chip, stages = base.chip, base.stages
    worst = [stage.tile(*stage.bounds(stage.count_of(tiles) - 1, tiles)) for stage in stages]
    memory_cycles = base.cost.total_bytes / chip.memory_bytes_per_s * chip.grid.clock_hz
    floor = memory_cycles / tiles * (CHAIN_SHARE if tiles < len(stages) else 1.0)
    given = balance(worst, chip.grid, chip.grid.pcus, max(1, int(floor)))
    if given is None:
        need = sum(stage.unit in (Unit.SYSTOLIC, Unit.SIMD) for stage in stages)
        return Misfit(base.name, need, chip.grid.pcus, 0, chip.grid.pmus, "")
    rates = [
        float(cycles(tile, split, chip.grid)) if split.pcus else 0.0
        for tile, split in zip(worst, given.splits, strict=True)
    ]
    rates = [rate or float(given.slowest_cycles) for rate in rates]
    tile_buffers = flow_buffers(stages, base.flows, tiles, given.splits, rates, chip.grid)
    streamed: frozenset[str] = frozenset()
    heavy = [s for s in base.streams if (s.kind in ("weight", "kv_read") or s.sum_bytes) and s.size_bytes]
    # Popped from the end: stream first what costs the least extra traffic per byte saved; the largest on ties.
    heavy.sort(key=lambda s: (-extra_bytes(s, stages[s.stage], tiles) / s.held_bytes, s.held_bytes))
    while True:
        held = held_buffers(stages, base.streams, streamed, tiles, given.splits, rates, chip.grid)
        buffers = (*tile_buffers, *held)
        if sum(buffer.pmus for buffer in buffers) <= chip.grid.pmus:
            break
        if not heavy:
            largest = max(buffers, key=lambda buffer: buffer.pmus)
            total = sum(buffer.pmus for buffer in buffers)
            return Misfit(base.name, given.pcus, chip.grid.pcus, total, chip.grid.pmus, largest.name)
        streamed = streamed | {heavy.pop().value}
    service = tuple(_service(base, i, tiles, given.splits[i], rates, buffers) for i in range(len(stages)))
    return replace(
        base,
        tiles=tiles,
        splits=given.splits,
        balance=given,
        buffers=buffers,
        streamed=streamed,
        service_s=service,
    )


def _service(
    base: Mapped, at: int, tiles: int, split: Split, rates: Sequence[float], buffers: Sequence[Buffer]
) -> tuple[float, ...]:
    """Seconds per tile in a stage."""
    stage, chip = base.stages[at], base.chip
    count = stage.count_of(tiles)
    if stage.unit is Unit.LINK:
        moved = max((flow.size_bytes for flow in base.flows if flow.dst == at), default=0)
        moved = moved or sum(s.size_bytes for s in base.streams if s.stage == at and s.kind == "input")
        ranks = min(base.ranks, base.ops[stage.op].integer("ranks"))  # possibly only a group of the sockets
        made = moved * ranks if stage.kind == "all_gather" else moved
        latency_s, busy_s = chip.collective_s(stage.kind, made / count, ranks, count)
        return (latency_s + busy_s, *(busy_s,) * (count - 1))
    if stage.unit is Unit.MEMORY:
        pmus = sum(buffer.pmus for buffer in buffers if buffer.stage == at) or 1
        moved = sum(flow.size_bytes for flow in base.flows if flow.dst == at)
        moved += sum(s.size_bytes for s in base.streams if s.stage == at)
        return (chip.seconds(moved / count / pmus / chip.grid.pmu_bytes_per_cycle),) * count
    if stage.seen is None:
        one = chip.seconds(cycles(stage.tile(*stage.bounds(0, tiles)), split, chip.grid))
        return (one,) * count
    return tuple(chip.seconds(cycles(stage.tile(*stage.bounds(k, tiles)), split, chip.grid)) for k in range(count))

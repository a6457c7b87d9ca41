"""Functional simulation of a mapped section: executes it tile by tile, through bounded FIFOs, in its walk's order.

It must give the results of graph/reference.py, move the bytes that the mapping predicts, and never exceed its FIFOs.
A view is no step of its own: tiles are passed on in the form in which their reader sees them. A sum over tiles is
accumulated in float32 in its stage, and passed on after the last tile. The sockets of a sharded section run in
parallel and synchronise at exchanges.

Knows nothing about time, nor about what an op computes (interpret_work.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coterie.core.errors import UnsupportedError, UsageError
from coterie.dataflow.interpret_bytes import Tally
from coterie.dataflow.interpret_tiles import Array, Channel, Views, part
from coterie.dataflow.interpret_work import Firing, Outside, compute
from coterie.dataflow.loops import Access, Tag
from coterie.dataflow.mapping import Mapped
from coterie.dataflow.memory import KEY_BLOCK, depths
from coterie.dataflow.traffic import border
from coterie.dataflow.walk import EdgeKind, dimension_of
from coterie.graph.ir import Graph, Kind
from coterie.graph.ops import COLLECTIVES
from coterie.graph.reference import KvState, collective_results
from coterie.graph.sampling import Settings


@dataclass(slots=True)
class Ran:
    """The result of a run: output values, off-chip bytes by kind, the FIFOs at the end, the order of firings.

    `exchanged`: bytes of the results of each kind of exchange, which every socket receives.
    """

    outputs: dict[str, Array]
    moved: dict[str, int]
    channels: list[Channel]
    order: list[tuple[int, int]] = field(default_factory=list)
    exchanged: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLLECTIVES, 0))

    @property
    def moved_bytes(self) -> int:
        """Total off-chip bytes."""
        return sum(self.moved.values())


class Interpreter:
    """One mapped section of one socket; `key_block`: number of keys whose scores exist at once.

    Raises UnsupportedError for an op whose walked loop neither indexes its result nor is a sum.
    """

    def __init__(self, graph: Graph, mapped: Mapped, key_block: int = KEY_BLOCK) -> None:
        self.graph, self.mapped, self.key_block = graph, mapped, key_block
        self.ops, self.walk = mapped.ops, mapped.walk
        self.views = Views(graph, mapped.walk)
        self.outputs = [n for n in border(graph, self.ops).outputs if graph.values[n].kind is not Kind.STATE]
        self.counts = [
            0 if nest.is_view else min(mapped.tiles, self.walk.tiles_of(at)) for at, nest in enumerate(self.walk.nests)
        ]
        for nest, loop in zip(self.walk.nests, self.walk.loops, strict=True):
            sums = not loop or nest.loop(loop).tag is Tag.REDUCTION or nest.op.kind == "attention_grad"
            if not nest.is_view and not sums and dimension_of(nest.writes[0], loop) is None:
                fact = f"{nest.op.kind} walks loop {loop}, which its result has not, and does not sum over it"
                raise UnsupportedError(f"{graph.name}: {nest.op.name}", fact, "walk its rows")

    def run(self, values: Mapping[str, Array], state: KvState | None = None, sampling: Sequence[Settings] = ()) -> Ran:
        """Run on whole arrays of all inputs. Raises UsageError if the section needs other sockets."""
        return run_sockets([(self, values, state)], sampling)[0]

    def channels(self) -> list[Channel]:
        """Empty FIFOs for all edges between different ops."""
        stages, flows = self.mapped.stages, self.mapped.flows
        found = {}
        for flow, depth in zip(flows, depths(flows, len(stages)), strict=True):
            src, dst, whole = stages[flow.src].op, stages[flow.dst].op, flow.kind is EdgeKind.FULL
            tokens = 1 if flow.sum_bytes else self.counts[src]
            if src != dst:
                found[flow.value, dst] = Channel(flow.value, src, dst, tokens if whole else depth, whole, tokens)
        return list(found.values())

    def rows(self, at: int, tile: int) -> tuple[int, int]:
        """The half-open range of the op's walked loop that a tile covers; always whole groups of rows."""
        groups = self.walk.tiles_of(at)
        unit, count = self.walk.size_of(at) // groups, self.counts[at]
        return unit * (groups * tile // count), unit * (groups * (tile + 1) // count)


def run_sockets(
    sockets: Sequence[tuple[Interpreter, Mapping[str, Array], KvState | None]], sampling: Sequence[Settings] = ()
) -> list[Ran]:
    """Run the same section on all sockets of a group, each with its own values and state.

    Each runs until it reaches an exchange, which combines the tiles of all. Raises UsageError for a wrong number of
    sockets.
    """
    for each, _, _ in sockets:
        ranks = max((op.integer("ranks") for op in each.ops if op.kind in COLLECTIVES), default=1)
        if len(sockets) % ranks:
            fact = f"its exchanges are among {ranks} sockets, not {len(sockets)}"
            raise UsageError(f"{each.graph.name}: {each.mapped.name}", fact, "run all of them together")
    running = [_Socket(*each, sampling) for each in sockets]
    while True:
        waiting = [socket.go_on() for socket in running]
        if all(at is None for at in waiting):
            return [socket.end() for socket in running]
        (at,) = set(waiting)
        if at is None:
            raise AssertionError("sockets of one section wait for different exchanges")
        parts = [socket.take(at) for socket in running]
        op = running[0].owner.ops[at]
        joined = collective_results(op, [operands[op.inputs[0]] for operands in parts])
        for socket, operands, tile in zip(running, parts, joined, strict=True):
            own = socket.owner.ops[at].outputs[0]
            socket.ran.exchanged[op.kind] += int(tile.size) * socket.owner.graph.values[own].dtype.size_bytes
            socket.give(at, operands, {own: tile})


class _Socket:
    """The state of a run on one socket: contents of FIFOs and sums, and the number of firings per op."""

    def __init__(
        self,
        owner: Interpreter,
        values: Mapping[str, Array],
        state: KvState | None,
        sampling: Sequence[Settings],
    ) -> None:
        self.owner, self.graph, self.views = owner, owner.graph, owner.views
        constants = (v for v in self.graph.values.values() if v.kind is Kind.CONSTANT)
        self.values = {**{v.name: np.array(v.data, np.float32) for v in constants}, **values}
        self.values.setdefault("sampling", np.zeros(len(sampling), np.float32))  # only its length matters
        self.outside = Outside(self.values, state, sampling)
        self.tally = Tally(self.graph, owner.mapped, self.views, self.values)
        self.ran = Ran({}, self.tally.moved, owner.channels())
        self.into: list[dict[str, Channel]] = [{} for _ in owner.ops]
        self.out_of: list[list[Channel]] = [[] for _ in owner.ops]
        for channel in self.ran.channels:
            self.into[channel.dst][channel.name] = channel
            self.out_of[channel.src].append(channel)
        self.fired = [0] * len(owner.ops)
        self.sums: dict[str, Array] = {}
        self.held: dict[tuple[str, int], Array] = {}
        self.left: dict[str, list[Array]] = {name: [] for name in owner.outputs}

    def go_on(self) -> int | None:
        """Fire until only an exchange can, and return that (None at the end). Readers go first, to keep FIFOs empty."""
        while True:
            ready = [at for at in reversed(range(len(self.fired))) if self._ready(at)]
            at = next((at for at in ready if self.owner.ops[at].kind not in COLLECTIVES), None)
            if at is None:
                break
            operands = self.take(at)
            self.give(at, operands, compute(self._firing(at, operands)))
        if not ready and self.fired != self.owner.counts:
            raise AssertionError(f"deadlock: {[(c.name, len(c.tiles)) for c in self.ran.channels]}")
        return ready[0] if ready else None

    def take(self, at: int) -> dict[str, Array]:
        """The operand tiles for an op's next firing."""
        nest, loop = self.owner.walk.nests[at], self.owner.walk.loops[at]
        rows, size = self.owner.rows(at, self.fired[at]), self.owner.walk.size_of(at)
        found: dict[str, Array] = {}
        for access in sorted({a.value: a for a in nest.reads}.values(), key=lambda a: bool(a.by)):
            channel = self.into[at].get(access.value)
            if channel is not None and not channel.whole:
                found[access.value] = channel.take()
                continue
            if self.graph.values[access.value].kind is Kind.STATE:
                if channel is not None:
                    channel.take_all()
                continue
            whole = self._all_of(at, access, channel)
            if channel is None and self.views.origins[access.value][0] < 0:
                self.tally.enters(at, access, rows, found.get(access.by))
            found[access.value] = part(whole, dimension_of(access, loop), rows, size)
        return found

    def give(self, at: int, operands: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        """Pass on the results of a firing, or accumulate those that are partial sums."""
        tile, last = self.fired[at], self.fired[at] + 1 == self.owner.counts[at]
        op = self.owner.ops[at]
        pattern = operands.get(op.inputs[2]) if op.kind == "linear_dw" else None
        done: dict[str, Array] = {}
        for name, array in made.items():
            if self.views.dimension(name) is None:
                self.sums[name] = self.sums[name] + array if tile else array
                self.tally.grows(name, array, pattern, (tile == 0, last))
            if self.views.dimension(name) is not None or last:
                done[name] = self.sums.pop(name, array)
        for channel in self.out_of[at]:
            root, source, _ = self.views.origins.get(channel.name, (at, channel.name, True))
            if root < 0:
                channel.give(operands[channel.name])  # an activation from off chip, for later readers
            elif self.graph.values[channel.name].kind is Kind.STATE:
                channel.give(np.zeros(0, np.float32))
            elif source in done:
                channel.give(done[source] if channel.whole else self.views.show(channel.name, source, done[source]))
        for name in self.left:
            root, source, passes = self.views.origins[name]
            if root == at and source in done:
                shown = self.views.show(name, source, done[source]) if passes else done[source]
                self.left[name].append(shown)
                if passes or name == source:
                    self.tally.leaves(name, shown, pattern)
        if op.kind == "kv_append":
            self.tally.appends(op, len(operands[op.inputs[0]]))
        self.ran.order.append((at, tile))
        self.fired[at] += 1

    def end(self) -> Ran:
        """Assemble the outputs from their tiles, applying views that cannot be applied tile by tile."""
        for name, tiles in self.left.items():
            root, source, passes = self.views.origins[name]
            if root < 0:
                self._pass_by(name, source)
            elif tiles:
                joined = self.views.join(name if passes else source, tiles)
                self.ran.outputs[name] = joined if passes else self.views.show(name, source, joined)
                if not passes and name != source:
                    self.tally.leaves(name, self.ran.outputs[name], None)
        return self.ran

    def _pass_by(self, name: str, source: str) -> None:
        """An output that is merely a view of an input: no op fires."""
        view = self.views.makers[name]
        self.tally.enters(view, self.owner.walk.nests[view].reads[0], (0, self.owner.walk.size_of(view)), None)
        self.ran.outputs[name] = self.views.show(name, source, self.values[source])
        self.tally.leaves(name, self.ran.outputs[name], None)

    def _all_of(self, at: int, access: Access, channel: Channel | None) -> Array:
        """A whole value, through its views: a completed buffer or an input."""
        name = access.value
        key = (name, at)
        root, source, _ = self.views.origins[name]
        if root < 0 and channel is None:
            if name == source:
                return self.values[name]
            return self.held.setdefault(key, self.views.show(name, source, self.values[source]))
        if key not in self.held:
            if channel is None:
                raise AssertionError(f"nothing brings {name} to {self.owner.ops[at].name}")
            self.held[key] = self.views.show(name, source, self.views.join(source, channel.take_all()))
        return self.held[key]

    def _ready(self, at: int) -> bool:
        if self.fired[at] >= self.owner.counts[at]:
            return False
        if not all(channel.ready for channel in self.into[at].values()):
            return False
        return not any(channel.full for channel in self.out_of[at])

    def _firing(self, at: int, operands: Mapping[str, Array]) -> Firing:
        nest, tile = self.owner.walk.nests[at], self.fired[at]
        first, last = self.owner.rows(at, tile)
        return Firing(
            graph=self.graph,
            nest=nest,
            loop=self.owner.walk.loops[at],
            first=first,
            last=last,
            size=self.owner.walk.size_of(at),
            operands=operands,
            outside=self.outside,
            key_block=self.owner.key_block,
            reads_keys=lambda op, sequence, begin, end: self.tally.reads_keys(op, sequence, begin, end, tile),
        )

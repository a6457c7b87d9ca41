"""A mapped section run on numbers: tile by tile, through bounded FIFOs, in the order of its own walk.

It must give what graph/reference.py gives, move the bytes that the mapping says, and hold no more than its FIFOs hold.
A view is no step of its own: a tile is handed on as its reader sees it. Sums over the walked loop are not interpreted.
Attention goes over blocks of keys with a running maximum, sum and result; it never has a row of scores.

Knows nothing about time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from coterie.core.errors import UnsupportedError
from coterie.core.shapes import trailing
from coterie.dataflow.legal import Way, place_of
from coterie.dataflow.loops import Access
from coterie.dataflow.mapping import Mapped
from coterie.dataflow.memory import KEY_BLOCK, depths
from coterie.dataflow.traffic import border
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.reference import KvState, Step, run_op
from coterie.graph.sampling import Settings

Array: TypeAlias = npt.NDArray[Any]


@dataclass(slots=True)
class Channel:
    """A FIFO of tiles between two ops: what is in it, the most that ever was, how many tiles went through."""

    name: str
    src: int
    dst: int
    depth: int
    whole: bool
    tiles: deque[Array] = field(default_factory=deque)
    most: int = 0
    put: int = 0
    taken: int = 0

    @property
    def full(self) -> bool:
        """No room for another tile."""
        return len(self.tiles) >= self.depth


@dataclass(slots=True)
class Ran:
    """What a run gave: values that leave the section, the off-chip bytes by kind, the FIFOs after it."""

    outputs: dict[str, Array]
    moved: dict[str, int]
    channels: list[Channel]
    order: list[tuple[int, int]]

    @property
    def moved_bytes(self) -> int:
        """All off-chip bytes."""
        return sum(self.moved.values())


class Interpreter:
    """Runs one mapped section; `key_block` is the number of keys whose scores exist at once."""

    def __init__(self, graph: Graph, mapped: Mapped, key_block: int = KEY_BLOCK) -> None:
        self.graph, self.mapped, self.key_block = graph, mapped, key_block
        self.ops = mapped.ops
        self.nests, self.loops = mapped.walk.nests, mapped.walk.loops
        # Who makes each value, and whose tiles it shows (-1: what enters). A view never fires: its reader reads so.
        self.makers = {name: at for at, op in enumerate(self.ops) for name in op.outputs}
        self.roots = dict(self.makers)
        for at, (nest, loop) in enumerate(zip(self.nests, self.loops, strict=True)):
            if nest.is_view:
                self.roots[self.ops[at].outputs[0]] = self.roots.get(self.ops[at].inputs[0], -1)
            if place_of(nest.writes[0], loop) is None:
                fact = f"{nest.op.kind} is not walked along a dimension of its result"
                raise UnsupportedError(f"{graph.name}: {nest.op.name}", fact, "interpret sections that walk their rows")
        self.counts = [
            0 if nest.is_view else min(mapped.tiles, mapped.walk.tiles_of(at)) for at, nest in enumerate(self.nests)
        ]

    def run(self, values: Mapping[str, Array], state: KvState | None = None, sampling: Sequence[Settings] = ()) -> Ran:
        """Run on whole arrays of everything that enters; consumers go first, so FIFOs stay as empty as they can."""
        edge = border(self.graph, self.ops)
        kinds = ("weight", "input", "output", "kv_read", "kv_write")
        ran = Ran({}, dict.fromkeys(kinds, 0), self._channels(), [])
        work = _Work(self, values, state, sampling, ran)
        fired = [0] * len(self.ops)
        outputs: dict[str, list[Array]] = {name: [] for name in edge.outputs}
        while any(fired[at] < self.counts[at] for at in range(len(self.ops))):
            at = next((at for at in reversed(range(len(self.ops))) if self._ready(at, fired, ran)), None)
            if at is None:
                raise AssertionError(f"deadlock: {[(c.name, len(c.tiles)) for c in ran.channels]}")
            made = work.fire(at, fired[at])
            ran.order.append((at, fired[at]))
            fired[at] += 1
            for name, tiles in outputs.items():
                if self.roots[name] == at and self.graph.values[name].kind is not Kind.STATE:
                    tiles.append(self.seen_as(name, at, made))
        ran.outputs = {n: np.concatenate(tiles, axis=self.axis_of(n)) for n, tiles in outputs.items() if tiles}
        return ran

    def axis_of(self, name: str) -> int:
        """The dimension of a value along which its tiles follow each other."""
        at = self.makers[name]
        return place_of(self.nests[at].writes[0], self.loops[at]) or 0

    def seen_as(self, name: str, root: int, made: Array) -> Array:
        """A tile of an op (or, of what enters, all of it) as the views behind it show it to whoever reads `name`."""
        at = self.makers.get(name, -1)
        if at == root:
            return made
        op, loop = self.ops[at], self.loops[at]
        x = self.seen_as(op.inputs[0], root, made)
        if op.kind == "swap" and (part := {"o": "outer", "m": "middle", "i": "inner"}.get(loop)):
            whole = prod(each.size for each in self.nests[at].loops)
            op = replace(op, attrs={**op.attrs, part: op.integer(part) * x.size // whole})  # the tile's own sizes
        step = Step(self.graph, {op.inputs[0]: x}, cast(KvState, None), ())
        run_op(step, op)
        return step.values[op.outputs[0]]

    def _channels(self) -> list[Channel]:
        stages, flows = self.mapped.stages, self.mapped.flows
        deep = depths(flows, len(stages))
        found = {}
        for flow, depth in zip(flows, deep, strict=True):
            src, dst = stages[flow.src].op, stages[flow.dst].op
            whole = flow.way is Way.FULL
            if src != dst:
                room = self.counts[src] if whole else depth
                found[flow.value, dst] = Channel(flow.value, src, dst, room, whole)
        return list(found.values())

    def _ready(self, at: int, fired: Sequence[int], ran: Ran) -> bool:
        if fired[at] >= self.counts[at]:
            return False
        for channel in ran.channels:
            if channel.dst == at:
                waits = channel.put < self.counts[channel.src] if channel.whole else not channel.tiles
                if waits:
                    return False
            if channel.src == at and channel.full:
                return False
        return True


class _Work:
    """The firing of ops: gathers operands, computes a tile, hands it on, counts bytes."""

    def __init__(
        self,
        owner: Interpreter,
        values: Mapping[str, Array],
        state: KvState | None,
        sampling: Sequence[Settings],
        ran: Ran,
    ) -> None:
        self.owner, self.graph, self.ran = owner, owner.graph, ran
        constants = (v for v in self.graph.values.values() if v.kind is Kind.CONSTANT)
        self.values = {**{v.name: np.array(v.data, np.float32) for v in constants}, **values}
        self.values.setdefault("sampling", np.zeros(len(sampling), np.float32))  # only its rows are counted
        self.state, self.sampling = state, sampling
        self.loaded: set[str] = set()
        self.seen: dict[tuple[int, int, int], int] = {}
        self.tile = 0

    def fire(self, at: int, tile: int) -> Array:
        """One firing."""
        self.tile = tile
        nest, loop = self.owner.nests[at], self.owner.loops[at]
        size = nest.loop(loop).size
        first, last = (size * k // self.owner.counts[at] for k in (tile, tile + 1))
        operands: dict[str, Array] = {}
        for access in nest.reads:
            if self.graph.values[access.value].kind is not Kind.STATE:
                operands[access.value] = self._operand(at, access, (first, last))
        for channel in self.ran.channels:
            tokens = self.graph.values[channel.name].kind is Kind.STATE
            if channel.dst == at and tokens and not channel.whole:
                channel.tiles.popleft()
                channel.taken += 1
        made = self._compute(at, operands, (first, last))
        self._count_out(at, made)
        for channel in self.ran.channels:
            if channel.src == at:
                kept = operands.get(channel.name)  # an activation from outside, for later readers
                channel.tiles.append(kept if kept is not None else self.owner.seen_as(channel.name, at, made))
                channel.put += 1
                channel.most = max(channel.most, len(channel.tiles))
        return made

    def _operand(self, at: int, access: Access, rows: tuple[int, int]) -> Array:
        """A tile from its FIFO, all of a whole buffer, or a slice from outside, whose bytes are counted."""
        place = place_of(access, self.owner.loops[at])
        channel = next((c for c in self.ran.channels if (c.name, c.dst) == (access.value, at)), None)
        if channel is not None and not channel.whole:
            channel.taken += 1
            return channel.tiles.popleft()
        if channel is not None:
            inside = channel.name in self.owner.makers
            channel.taken = channel.put
            whole = np.concatenate(list(channel.tiles), axis=self.owner.axis_of(channel.name) if inside else 0)
        elif access.value in self.owner.makers:
            whole = self._viewed(access.value)
        else:
            whole = self.values[access.value]
            self._count_in(at, access, rows, place)
        if place is None:
            return whole
        # A dimension that several loops index together: the walked one is the outermost.
        stride = whole.shape[place] // self.owner.nests[at].loop(self.owner.loops[at]).size
        return np.take(whole, np.arange(rows[0] * stride, rows[1] * stride), axis=place)

    def _viewed(self, name: str) -> Array:
        """What enters the section as views show it; its bytes are counted once."""
        entered = name
        while entered in self.owner.makers:
            entered = self.owner.ops[self.owner.makers[entered]].inputs[0]
        whole = self.values[entered]
        if entered not in self.loaded:
            self.loaded.add(entered)
            self.ran.moved["input"] += int(whole.size) * self.graph.values[entered].dtype.size_bytes
        return self.owner.seen_as(name, -1, whole)

    def _count_in(self, at: int, access: Access, rows: tuple[int, int], place: int | None) -> None:
        value = self.graph.values[access.value]
        readers = [n for n, op in enumerate(self.owner.ops) if access.value in op.inputs]
        if at != readers[0]:
            return
        kind = "weight" if value.kind is Kind.WEIGHT else "input"
        width = value.dtype.row_bytes(trailing(value.shape)) if len(value.shape) > 1 else value.dtype.size_bytes
        if access.by:
            numbers = self.values[access.by][slice(*rows)]
            self.ran.moved[kind] += width * len(numbers)
        elif place == 0:
            stride = len(self.values[access.value]) // self.owner.nests[at].loop(self.owner.loops[at]).size
            self.ran.moved[kind] += width * stride * (rows[1] - rows[0])
        elif access.value in self.owner.mapped.streamed or access.value not in self.loaded:
            self.loaded.add(access.value)
            whole = self.values[access.value]
            sparse = int(np.count_nonzero(whole)) * value.dtype.size_bytes + -(-whole.size // 8)
            self.ran.moved[kind] += width * len(whole) if value.density == 1.0 else sparse

    def _compute(self, at: int, operands: dict[str, Array], rows: tuple[int, int]) -> Array:
        op = self.owner.ops[at]
        if op.kind == "linear":
            return self._linear(op, operands, place_of(self.owner.nests[at].writes[0], self.owner.loops[at]))
        if op.kind == "attention" and self.state is not None:
            return self._attention(op, operands, self.state)
        if op.kind == "sample":
            operands = {**operands, "positions": self.values["positions"], "rows": self.values["rows"][slice(*rows)]}
        # An op that has no state operand does not look at it.
        step = Step(self.graph, operands, cast(KvState, self.state), self.sampling[slice(*rows)])
        run_op(step, op)
        if op.kind == "kv_append":
            return np.zeros((rows[1] - rows[0], 0), np.float32)
        return step.values[op.outputs[0]]

    def _linear(self, op: Op, operands: dict[str, Array], walked: int | None) -> Array:
        x, weight = operands[op.inputs[0]], operands[op.inputs[1]]
        y = x.reshape(len(x), -1) @ weight.T
        if op.inputs[2]:
            y = y + operands[op.inputs[2]]
        shape = [len(x), *(dim for dim in self.graph.values[op.outputs[0]].shape[1:] if isinstance(dim, int))]
        shape[walked or 0] = -1
        return np.asarray(y.reshape(shape), np.float32)

    def _attention(self, op: Op, operands: dict[str, Array], state: KvState) -> Array:
        """Per token a running maximum m, sum l and result o over blocks of keys."""
        q, positions = operands[op.inputs[0]], operands["positions"]
        layer, window, scale = op.integer("layer"), op.integer("window"), np.float32(op.number("scale"))
        out = np.empty_like(q)
        for t, position in enumerate(positions):
            sequence, length = int(operands["sequence"][t]), int(position) + 1
            table = self.values["block_tables"][sequence]
            begin = max(0, length - window) if window else 0
            self._count_keys(op, sequence, begin, length)
            k, v = (state.context(layer, which, table, length)[begin:] for which in (0, 1))
            share = q.shape[1] // k.shape[1]
            m = np.full(q.shape[1], -np.inf, np.float32)
            total = np.zeros(q.shape[1], np.float32)
            o = np.zeros(q.shape[1:], np.float32)
            for at in range(0, length - begin, self.owner.key_block):
                keys, held = (np.repeat(x[at : at + self.owner.key_block], share, axis=1) for x in (k, v))
                scores = np.einsum("hc,shc->hs", q[t], keys) * scale
                higher = np.maximum(m, scores.max(axis=1))
                fade, p = np.exp(m - higher), np.exp(scores - higher[:, None])
                total = total * fade + p.sum(axis=1)
                o = o * fade[:, None] + np.einsum("hs,shc->hc", p, held)
                m = higher
            out[t] = o / total[:, None]
        return out

    def _count_keys(self, op: Op, sequence: int, begin: int, end: int) -> None:
        """Keys and values are read once, streamed ones once for each tile: what is on chip is not counted again."""
        tile = self.tile if f"{op.name}.kv" in self.owner.mapped.streamed else -1
        key = (op.integer("layer"), sequence, tile)
        seen = max(self.seen.get(key, begin), begin)
        self.seen[key] = max(seen, end)
        self.ran.moved["kv_read"] += max(0, end - seen) * self._key_bytes(op)

    def _key_bytes(self, op: Op) -> int:
        state = next(self.graph.values[n] for n in op.inputs if n and self.graph.values[n].kind is Kind.STATE)
        return trailing(state.shape) * state.dtype.size_bytes

    def _count_out(self, at: int, made: Array) -> None:
        op = self.owner.ops[at]
        if op.kind == "kv_append":
            self.ran.moved["kv_write"] += len(made) * self._key_bytes(op)
            return
        for name in border(self.graph, self.owner.ops).outputs:
            if self.owner.roots[name] == at:
                value = self.graph.values[name]
                self.ran.moved["output"] += int(self.owner.seen_as(name, at, made).size) * value.dtype.size_bytes

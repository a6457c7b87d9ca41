"""A tiny random decoder for device tests: its program, its weights in a file, and rows to run it with.

Knows nothing about any device: `Desk` asks the seam for what it needs.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange, Layout, PlacedRange, PlacedTensor
from coterie.core.dtypes import DType, from_f32
from coterie.core.shapes import Symbol
from coterie.device import Binding, Buffer, Event, Executable, Rows, Sampling
from coterie.graph.compile import compile_graph
from coterie.graph.ir import Graph, GraphBuilder, Kind
from coterie.graph.vectors import vectors_graph

T, B, R = Symbol.T, Symbol.B, Symbol.R
D, F, V, H, K, C, L = 32, 48, 64, 4, 2, 8, 2
BLOCK_TOKENS = 4
KV_BLOCK_BYTES = BLOCK_TOKENS * L * 2 * K * C * DType.BF16.size_bytes
NUM_KV_BLOCKS = 32


def tiny_graph(dtype: DType = DType.BF16) -> Graph:
    """A Llama-shaped decoder of two layers, ops in the canonical order."""
    b = GraphBuilder("tiny")
    for name, shape, kind_dtype in (
        ("tokens", (T,), DType.I32),
        ("positions", (T,), DType.I32),
        ("sequence", (T,), DType.I32),
        ("block_tables", (B,), DType.I32),
        ("rows", (R,), DType.I32),
        ("sampling", (R,), DType.F32),
    ):
        b.value(name, shape, kind_dtype, Kind.INPUT)
    inv_freq = tuple(float(f) for f in 10000.0 ** (-np.arange(0, C, 2) / C))
    b.value("inv_freq", (C // 2,), DType.F32, Kind.CONSTANT, inv_freq)
    b.value("kv", (L, 2, K, C), dtype, Kind.STATE)

    def weight(name, *shape):
        return b.value(name, shape, dtype, Kind.WEIGHT)

    def op(kind, name, inputs, shape, **attrs):
        y = b.value(f"{b.stage}/{name}", shape, DType.F32, Kind.TENSOR)
        b.op(kind, name, inputs, (y,), **attrs)
        return y

    def linear(name, x, n, k, shape):
        return op("linear", name, (x, weight(f"{b.stage}.{name}", n, k), ""), shape)

    b.stage = "embed"
    x = op("embed", "x", ("tokens", weight("embed.table", V, D)), (T, D))
    for layer in range(L):
        b.stage = f"layers.{layer}"
        h = op("rms_norm", "input_norm", (x, weight(f"{b.stage}.input_norm", D)), (T, D), eps=1e-5)
        q = linear("q", h, H * C, D, (T, H, C))
        k = linear("k", h, K * C, D, (T, K, C))
        v = linear("v", h, K * C, D, (T, K, C))
        q = op("rope", "q_rope", (q, "positions", "inv_freq"), (T, H, C), scale=1.0)
        k = op("rope", "k_rope", (k, "positions", "inv_freq"), (T, K, C), scale=1.0)
        state = ("positions", "sequence", "block_tables", "kv")
        b.op("kv_append", "kv_append", (k, v, *state), ("kv",), layer=layer)
        y = op("attention", "attention", (q, *state), (T, H, C), layer=layer, scale=C**-0.5, window=0)
        o = linear("o", y, D, H * C, (T, D))
        x = op("add", "attention_out", (x, o), (T, D))
        h = op("rms_norm", "post_norm", (x, weight(f"{b.stage}.post_norm", D)), (T, D), eps=1e-5)
        gate = linear("gate", h, F, D, (T, F))
        up = linear("up", h, F, D, (T, F))
        silu = op("silu", "silu", (gate,), (T, F))
        mul = op("mul", "mul", (silu, up), (T, F))
        down = linear("down", mul, D, F, (T, D))
        x = op("add", "out", (x, down), (T, D))
    b.stage = "head"
    taken = op("take_rows", "taken", (x, "rows"), (R, D))
    h = op("rms_norm", "norm", (taken, weight("head.norm", D)), (R, D), eps=1e-5)
    logits = linear("logits", h, V, D, (R, V))
    b.value("next_tokens", (R,), DType.I32, Kind.OUTPUT)
    b.op("sample", "sample", (logits, "sampling"), ("next_tokens",))
    return b.build()


def write_weights(path: Path, graph: Graph, seed: int = 0) -> Layout:
    """Write random weights in execution order behind one block of header, and say where they are."""
    rng = np.random.default_rng(seed)
    stage_of, tensors, ends = graph.weight_stage(), {}, {}
    data = bytearray()
    for value in graph.weights:
        fan_in = value.shape[-1]
        numbers = rng.standard_normal(value.shape, dtype=np.float32) / np.float32(fan_in**0.5)
        if len(value.shape) == 1:
            numbers = 1 + np.float32(0.1) * rng.standard_normal(value.shape, dtype=np.float32)
        tensors[value.name] = PlacedTensor(len(data), value.dtype, value.shape)
        data += from_f32(numbers, value.dtype).tobytes()
        ends[stage_of[value.name]] = len(data)
    path.write_bytes(bytes(BLOCK_BYTES) + bytes(data))
    stat, ranges, start = path.stat(), [], 0
    for stage, end in ends.items():
        stop = -(-end // BLOCK_BYTES) * BLOCK_BYTES
        if stop > start:
            source = FileRange(str(path), BLOCK_BYTES + start, stop - start, FileIdentity.of(stat))
            ranges.append(PlacedRange(source, start, stage))
        start = max(start, stop)
    return Layout(start, tuple(ranges), tensors)


def rows(
    chunks: list[tuple[list[int], int]],
    sampling: list[Sampling] | None = None,
    end_ids: tuple[tuple[int, ...], ...] = (),
    blocks_per_sequence: int = 4,
) -> Rows:
    """Rows of one step. A chunk is (tokens, position of the first) of one sequence; its last token is sampled."""
    tokens = [token for chunk, _ in chunks for token in chunk]
    positions = [start + i for chunk, start in chunks for i in range(len(chunk))]
    sequence = [s for s, (chunk, _) in enumerate(chunks) for _ in chunk]
    last = np.cumsum([len(chunk) for chunk, _ in chunks], dtype=np.int32) - 1
    tables = np.arange(len(chunks) * blocks_per_sequence, dtype=np.int32).reshape(len(chunks), blocks_per_sequence)
    return Rows(
        tokens_T=np.array(tokens, dtype=np.int32),
        positions_T=np.array(positions, dtype=np.int32),
        sequence_T=np.array(sequence, dtype=np.int32),
        block_tables_BM=tables,
        lengths_B=np.array([start + len(chunk) for chunk, start in chunks], dtype=np.int32),
        rows_R=last.astype(np.int32),
        sampling=tuple(sampling or [Sampling() for _ in chunks]),
        end_ids=end_ids,
    )


def decode(token: int, at: int, *sampling: Sampling, blocks_per_sequence: int = 4) -> Rows:
    """Rows of one step of one sequence's token at a position."""
    return rows([([token], at)], list(sampling) or None, blocks_per_sequence=blocks_per_sequence)


@dataclass
class Desk:
    """A device with one expert's slab and KV reserved, and the tiny program loaded."""

    device: object
    layout: Layout
    graph: Graph = field(default_factory=tiny_graph)
    weights: Buffer = field(init=False)
    kv: Buffer = field(init=False)
    exe: Executable = field(init=False)

    def __post_init__(self):
        run_tier = self.device.spec.run_tier
        self.weights = self.device.reserve(run_tier, self.layout.size_bytes)
        self.kv = self.device.reserve(run_tier, NUM_KV_BLOCKS * KV_BLOCK_BYTES)
        self.exe = self.device.load(compile_graph(self.graph, self.device.spec.rule_set))

    def fetch(self, after=(), weights: Buffer | None = None) -> dict[str, Event]:
        """Fetch every range in order; the gates are each stage's event."""
        dst = weights or self.weights
        gates = {}
        for placed in self.layout.ranges:
            view = dst.view(placed.offset, placed.source.size_bytes)
            gates[placed.stage] = self.device.fetch(view, placed.source, after)
        return gates

    def binding(self, step: Rows, weights: Buffer | None = None) -> Binding:
        """Bind the expert's weights and the whole KV."""
        offsets = self.layout.offsets(self.exe.program.weights)
        return Binding(weights or self.weights, offsets, self.kv, KV_BLOCK_BYTES, step)

    def run(self, step: Rows, **options) -> Event:
        """Run the tiny program on these rows."""
        return self.device.run(self.exe, self.binding(step), **options)

    def wait(self, *events: Event) -> None:
        """Wait for all of them."""
        for event in events:
            while not self.device.done(event):
                self.device.wait_any([event])

    def tokens(self, event: Event) -> list[list[int]]:
        """Wait for a run and return its tokens."""
        self.wait(event)
        return self.device.tokens(event).tolist()


def loaded(desk: Desk) -> Desk:
    """The desk, once all of its expert is there."""
    desk.wait(*desk.fetch().values())
    return desk


def headless(desk: Desk) -> Desk:
    """The same weights and KV state under the program that gives vectors in place of tokens."""
    other = copy(desk)
    other.exe = desk.device.load(compile_graph(vectors_graph(desk.graph), desk.device.spec.rule_set))
    return other

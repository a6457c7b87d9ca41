"""The benchmarks of Table III, each as two programs of one graph: PyTorch's kernels, and whole sections.

Knows nothing about Figs. 10 and 11, which compare the two.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

from coterie.core.shapes import Sizes
from coterie.dataflow.price import section_price
from coterie.devices.modelled.region import Pricing, RegionPricer, facts
from coterie.graph.backward.build import training_graph
from coterie.graph.buffers import plan_buffers
from coterie.graph.compile import compile_graph, kv_shape
from coterie.graph.eager.rewrite import expand
from coterie.graph.fuse import O0, SECTION, fuse
from coterie.graph.ir import Graph
from coterie.graph.program import Program
from coterie.graph.shard import shard
from coterie.models.zoo import zoo_graph
from coterie.plan.paper.published import data
from coterie.spec.machine import MachineSpec

MATRIX = 32  # rows of an FFT's matrices, and columns of the data that streams through them
SOCKETS = 8  # except for the benchmark that is not a language model, which uses one
GUESS = "sparse-gpt-13b"
GUESSED = "shapes and which weights are sparse are not published: GPT-3's 13B, all linears of its layers"
NO_OPTIMISER = "forward and backward, no optimiser"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A row of Table III. `model`: a name in the model zoo."""

    name: str
    model: str
    tokens: int
    phase: str

    @property
    def note(self) -> str:
        """What is left out or guessed in its rows."""
        guessed = GUESSED if self.model == GUESS else ""
        return "; ".join(filter(None, (NO_OPTIMISER if self.phase == "train" else "", guessed)))

    @property
    def is_model(self) -> bool:
        """Whether it is a language model, which is sharded over eight sockets."""
        return self.phase != "whole"

    def sizes(self, batch: int) -> Sizes:
        """The step that is timed: prefill, a decode step at full context, or a training step."""
        if not self.is_model:
            # B: sequences, whose length is fixed in the graph; T: rows streamed, which no op reads.
            rows = batch * self.tokens // MATRIX
            return Sizes(T=rows, B=batch, R=batch, context_tokens=batch, pairs=batch)
        if self.phase == "decode":
            return Sizes.decode(batch, self.tokens)
        sizes = Sizes.prefill(batch, self.tokens)
        return replace(sizes, R=sizes.T) if self.phase == "train" else sizes  # every token has a target

    @property
    def graph(self) -> Graph:
        """The graph of one socket."""
        if not self.is_model:
            return zoo_graph(self.model)
        if self.phase == "train":
            return training_graph(zoo_graph(self.model), SOCKETS)
        return shard(zoo_graph(self.model, self.phase), SOCKETS)


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """All benchmarks, in the order of the figures."""
    return tuple(Benchmark(**row) for row in data("table-3")["benchmark"])


@cache
def unfused(benchmark: Benchmark) -> Program:
    """The kernels that PyTorch launches, each a region, including views: SambaFlow's o0, without any fusion."""
    graph = benchmark.graph
    return _program(expand(graph) if benchmark.is_model else graph, O0, benchmark)


@cache
def fused(benchmark: Benchmark) -> Program:
    """One section each for the embedding, every decoder layer and the head."""
    return _program(benchmark.graph, SECTION, benchmark)


def _program(graph: Graph, rule_set: str, benchmark: Benchmark) -> Program:
    """Compile a graph; a training step, which samples nothing and cannot be run, only as far as pricing needs."""
    if benchmark.phase != "train":
        return compile_graph(graph, rule_set)
    weights = tuple(value.name for value in graph.weights)
    return Program(graph, rule_set, fuse(graph, rule_set), plan_buffers(()), weights, kv_shape(graph), 0)


def launches(program: Program) -> int:
    """Kernel launches per step."""
    return len(program.regions)


def fits(spec: MachineSpec, program: Program, sizes: Sizes) -> bool:
    """Whether each of a program's sections fits on a socket's grid in one piece, as the launch count assumes."""
    indices = dict.fromkeys(facts(program).same)
    return all(section_price(spec, program.graph, program.regions[i].ops, sizes) is not None for i in indices)


def layer_kernels(benchmark: Benchmark) -> int:
    """PyTorch kernels that correspond to the largest section, whose program fills the grid."""
    return max(Counter(op.stage for op in unfused(benchmark).graph.ops).values())


def work_s(spec: MachineSpec, program: Program, sizes: Sizes) -> float:
    """Time of a step's regions without launches: overlapped arithmetic and memory, exchanges, pipeline fill.

    Sections are mapped to the grid (dataflow/); PyTorch kernels are priced as regions.
    """
    found = 0.0
    for index, count in Counter(facts(program).same).items():
        row = RegionPricer(spec, program, index, (spec.run_tier, spec.run_tier), Pricing(mapped=True)).time(sizes)
        found += count * (row.seconds - row.launch_s)
    return found

"""The benchmarks of Table III, each as two programs of one graph: PyTorch's kernels, and whole sections.

Knows nothing about Figs. 10 and 11, which are what the two are compared by.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from coterie.core.shapes import Sizes
from coterie.devices.modelled_price import Pricing, facts, region_time
from coterie.graph.compile import compile_graph
from coterie.graph.eager import expand
from coterie.graph.fuse import O0, SECTION
from coterie.graph.ir import Graph
from coterie.graph.program import Program
from coterie.graph.shard import shard
from coterie.models.zoo import zoo_graph, zoo_names
from coterie.plan.paper.published import data
from coterie.spec.machine import MachineSpec

MATRIX = 32  # rows of a transform's matrices, and columns of what streams through them
SOCKETS = 8  # one for the benchmark that is no language model
NO_BACKWARD = "not modelled: training needs the graph of the backward pass, which we do not build"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A row of Table III. `model` is a name of the zoo."""

    name: str
    model: str
    tokens: int
    phase: str

    @property
    def missing(self) -> str:
        """Why it is not modelled; empty where it is."""
        if self.phase == "train":
            return NO_BACKWARD
        return "" if self.model in zoo_names() else f"not modelled: the zoo has no {self.model}"

    @property
    def is_model(self) -> bool:
        """Whether it is a language model, which eight sockets share."""
        return self.phase != "whole"

    def sizes(self, batch: int) -> Sizes:
        """The step that is timed: a first token, or one more with a full context."""
        if not self.is_model:
            # B counts sequences, whose length is inside the graph; T, which no op reads, how many rows stream through.
            rows = batch * self.tokens // MATRIX
            return Sizes(T=rows, B=batch, R=batch, context_tokens=batch, pairs=batch)
        return Sizes.decode(batch, self.tokens) if self.phase == "decode" else Sizes.prefill(batch, self.tokens)

    @property
    def graph(self) -> Graph:
        """What one socket computes."""
        if not self.is_model:
            return zoo_graph(self.model)
        return shard(zoo_graph(self.model, self.phase), SOCKETS)


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """All of them, in the figures' order."""
    return tuple(Benchmark(**row) for row in data("table-3")["benchmark"])


@cache
def unfused(benchmark: Benchmark) -> Program:
    """The kernels that PyTorch launches, each a region, views too: SambaFlow's o0, every operator for itself."""
    graph = benchmark.graph
    return compile_graph(expand(graph) if benchmark.is_model else graph, O0)


@cache
def fused(benchmark: Benchmark) -> Program:
    """Whole sections: the embedding, a decoder layer, the head."""
    return compile_graph(benchmark.graph, SECTION)


def launches(program: Program) -> int:
    """Kernel calls of one step."""
    return len(program.regions)


def layer_kernels(benchmark: Benchmark) -> int:
    """Kernels of PyTorch in the largest section: what a whole grid's program is made of."""
    return max(Counter(op.stage for op in unfused(benchmark).graph.ops).values())


def work_s(spec: MachineSpec, program: Program, sizes: Sizes) -> float:
    """All regions of a step without their launches: arithmetic and memory at once, exchanges, filling of pipelines."""
    found = 0.0
    for index, count in Counter(facts(program).same).items():
        row = region_time(spec, program, index, sizes, (spec.run_tier, spec.run_tier), Pricing())
        found += count * (row.seconds - row.launch_s)
    return found

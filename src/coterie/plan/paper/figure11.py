"""Figure 11: ratio of kernel launches, unfused over fused, counted in the two programs.

Knows nothing about time.
"""

from __future__ import annotations

from coterie.plan.paper.benchmarks import Benchmark, benchmarks, fused, launches, unfused
from coterie.plan.paper.published import compare, published
from coterie.plan.paper.row import Exhibit, Kind, Method, Row, bars

NAME, TITLE = "figure-11", "Figure 11"
FAR = 1.4  # a larger discrepancy suggests that the paper's program has other sections


def figure_11() -> Exhibit:
    """All ratios."""
    rows = tuple(_row(benchmark) for benchmark in benchmarks())
    chart = bars("Kernel calls, unfused over fused", "x", rows)
    about = "Kernel calls, unfused over fused"
    notes = (
        "Unfused: the kernels that PyTorch launches for Hugging Face's modelling code, from the op table; fused: one "
        "kernel for the embedding, each decoder layer and the head",
    )
    return Exhibit(NAME, TITLE, about, rows, (), (chart,), notes)


def _row(benchmark: Benchmark) -> Row:
    value = published(NAME)[benchmark.name]
    many, few = launches(unfused(benchmark)), launches(fused(benchmark))
    note = "; ".join(filter(None, (f"{many} over {few}", benchmark.note)))
    if many / few > FAR * value.value:
        layers = len({op.stage for op in fused(benchmark).graph.ops if "layers." in op.stage})
        theirs = many / value.value
        note += (
            f"; the published ratio means some {theirs:.0f} fused kernels, {theirs / layers:.1f} where ours has one a "
            "layer: the paper's program is cut into more sections"
        )
    return compare(TITLE, value, many / few, Kind.PREDICTED, Method.MACHINE, note)

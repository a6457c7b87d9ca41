"""Table I: operational intensity of the example of Fig. 3, for three degrees of fusion.

Closed form: BF16, with a unit u = 128 x 1024 elements; square tensors have 8 u. The table is reproduced only if Scale's
8 u are not counted, and if the fused graph is charged one more operand of 1 u than Fig. 3 shows.

Machine: flops and bytes of the graph under three rule sets, with everything counted.
Knows nothing about machines: intensity is a property of the fused graph.
"""

from __future__ import annotations

from coterie.core.shapes import Sizes
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.graph.fuse import O0, SECTION
from coterie.models.zoo import zoo_graph
from coterie.plan.paper.published import compare, published
from coterie.plan.paper.row import Exhibit, Fitted, Kind, Method, Row, bars

NAME, TITLE = "table-1", "Table I"
N, K, BYTES = 1024, 128, 2  # square tensors are N x N, the others N x K
UNIT_BYTES = N * K * BYTES
FLOPS = 2 * (2 * N * K * N) + N * N  # two GEMMs and one multiplication per element
UNITS = {
    "no fusion": (1 + 1 + 8) + (8 + 8) + (8 + 8) + (8 + 1 + 1),
    "Gemm0+Mul+Transpose fused": (1 + 1 + 8) + (8 + 1 + 1),
    "all fused": (1 + 1 + 1 + 1) + 1,
}
WHY = {
    "no fusion": "Scale's traffic is not counted",
    "Gemm0+Mul+Transpose fused": "Scale's traffic is not counted",
    "all fused": "Scale's traffic is not counted, and one operand of 128 x 1024 is charged that Fig. 3 does not show",
}


FUSION = {"no fusion": O0, "Gemm0+Mul+Transpose fused": "epilogue", "all fused": SECTION}


def table_1() -> Exhibit:
    """The three intensities."""
    rows = tuple(
        compare(TITLE, value, FLOPS / (UNITS[name] * UNIT_BYTES), Kind.FITTED, Method.CLOSED_FORM, WHY[name])
        for name, value in published(NAME).items()
    )
    rows += tuple(_machine_row(name) for name in published(NAME))
    fitted = (
        Fitted("Scale's bytes that count", 0, "B", "Table I: counted, its rows would be 34.2, 73.3 and 171.0"),
        Fitted("operands of the fused graph", 5, "x 256 KiB", "Table I, last row: four operands would give 513"),
    )
    charts = (bars("Operation intensity", "FLOP/byte", rows),)
    about = "Operations per byte of Gemm0, Mul, Transpose, Gemm1 (Fig. 3)"
    return Exhibit(NAME, TITLE, about, rows, fitted, charts)


def _machine_row(name: str) -> Row:
    cost = program_cost(compile_graph(zoo_graph("monarch-example"), FUSION[name]), Sizes.prefill(1, 1))
    note = "every operand counted once, Scale's too: what the table leaves out"
    ours = cost.flops / cost.total_bytes
    return compare(TITLE, published(NAME)[name], ours, Kind.PREDICTED, Method.MACHINE, note)

"""Writes the page docs/maps/sections.md: how each benchmark of the paper is cut into sections.

Knows nothing about the paper's own times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from coterie.core.units import format_seconds
from coterie.dataflow.chip import chip_of
from coterie.dataflow.report import SECTION_HEAD, section_rows
from coterie.dataflow.sections import Sections, sections_of
from coterie.plan.paper.benchmarks import SOCKETS, benchmarks
from coterie.spec.load import load_machine

PAGE = Path(__file__).resolve().parents[1] / "docs" / "maps" / "sections.md"
MACHINE = "sn40l-node"
HEAD = f"""# Sections of the paper's benchmarks

Table III's benchmarks at batch 1 on `{MACHINE}`, cut by least time (`coterie map MODEL --how best`), language models
on {SOCKETS} sockets, one of which is shown. L0: roofline; L1: bottleneck stage, fill and drain; L2: tile by tile, with
what the most loaded link of the chip carries. Equal layers are mapped once and counted (x). Written by
`python -m benchmarks.sections`; `make test-long` holds it.
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(line for part in parts() for line in part)])


def parts() -> Iterator[list[str]]:
    """A heading, a table and the boundaries of each benchmark."""
    spec = load_machine(MACHINE)
    for benchmark in benchmarks():
        degree = SOCKETS if benchmark.is_model else 1
        plan = sections_of(benchmark.graph, benchmark.sizes(1), chip_of(spec, "device"), "best", degree)
        yield [f"## {benchmark.name}", "", *_rows(plan), "", *_boundaries(plan), ""]


def _rows(plan: Sections) -> list[str]:
    head = [f"| {' | '.join(SECTION_HEAD)} |", "|---" * len(SECTION_HEAD) + "|"]
    return [*head, *(f"| {' | '.join(cells)} |" for cells in section_rows(plan))]


def _boundaries(plan: Sections) -> list[str]:
    """The time of a step, and the distinct reasons for its boundaries, with counts."""
    launches = "1 launch" if plan.launches == 1 else f"{plan.launches} launches"
    step = f"A step by L1: {format_seconds(plan.seconds())} in {launches}"
    if len(plan.calls) < plan.launches:
        looped = f"{format_seconds(plan.seconds(looping=True))} in {len(plan.calls)} calls"
        step += f"; {looped} with equal layers looped"
    why: dict[str, int] = {}
    for boundary in plan.boundaries:
        key = f"{boundary.kind}: {boundary.reason}"
        why[key] = why.get(key, 0) + 1
    return [f"{step}.", "", *(f"- {count} x {reason}" for reason, count in why.items())]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

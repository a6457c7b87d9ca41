"""Figure 13: number of nodes needed to keep all experts where they can run without copies from the host.

Knows nothing about time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coterie.plan.paper.arithmetic import dgx_nodes, fitted_rules, sn40l_nodes
from coterie.plan.paper.published import compare, data, published
from coterie.plan.paper.row import Chart, Exhibit, Kind, Method, Row, Series
from coterie.plan.paper.samba import modelled_nodes

NAME, TITLE = "figure-13", "Figure 13"
MAX_EXPERTS = 900


@dataclass(frozen=True, slots=True)
class Footprint:
    """The number of nodes as a function of the number of experts, for each machine, by one method."""

    method: Method
    nodes: dict[str, Callable[[int], int]]
    kinds: dict[str, Kind]


def footprints() -> tuple[Footprint, ...]:
    """All footprints, the paper's first."""
    paper = Footprint(
        Method.CLOSED_FORM,
        {"DGX": dgx_nodes, "SN40L": sn40l_nodes},
        {"DGX": Kind.FITTED, "SN40L": Kind.GIVEN},
    )
    counts = {"DGX": _counter("A100"), "SN40L": _counter("SN40L")}
    return (paper, Footprint(Method.MACHINE, counts, dict.fromkeys(counts, Kind.PREDICTED)))


def _counter(name: str) -> Callable[[int], int]:
    """Counts nodes that each hold a router and the KV cache of one prompt at maximal context."""
    node = modelled_nodes()[name]
    room_gb = node.far_gb if node.name == "SN40L" else node.hbm_gb - node.resident_gb - node.kv_gb
    per_node = int(room_gb // node.expert_gb)
    return lambda experts: -(-experts // per_node)


def figure_13() -> Exhibit:
    """The steps of both curves, and the number stated in the text."""
    found = footprints()
    rows = tuple(_row(footprint, name) for footprint in found for name in published(NAME))
    about = "Nodes that keep every expert where it can run without host copies, against the number of experts"
    return Exhibit(NAME, TITLE, about, rows, fitted_rules("dgx_resident_experts"), (_chart(found),))


def _row(footprint: Footprint, name: str) -> Row:
    value = published(NAME)[name]
    machine = name.replace(",", "").split(" ")[0]
    count = footprint.nodes[machine]
    if value.unit == "nodes":
        ours = float(count(int(name.split(" ")[-2])))
    else:
        nodes, every = int(name.split(" ")[-2]), int(data(NAME)["sampled_every"])
        ours = float(next(experts for experts in range(every, 10**6, every) if count(experts) >= nodes))
    return compare(TITLE, value, ours, footprint.kinds[machine], footprint.method)


def _chart(found: tuple[Footprint, ...]) -> Chart:
    every = int(data(NAME)["sampled_every"])
    counts = tuple(float(e) for e in range(every, MAX_EXPERTS, every))
    series = [
        Series(f"{machine}, published", counts, _published_curve(machine, counts), is_published=True)
        for machine in ("DGX", "SN40L")
    ]
    for footprint in found:
        for machine, nodes in footprint.nodes.items():
            drawn = tuple(float(nodes(int(e))) for e in counts)
            series.append(Series(f"{machine}, {footprint.method.value}", counts, drawn))
    return Chart("Nodes for so many experts", "steps", "experts", "nodes", tuple(series))


def _published_curve(machine: str, counts: tuple[float, ...]) -> tuple[float | None, ...]:
    steps = [v.value for v in published(NAME).values() if v.row.startswith(f"{machine}, first")]
    return tuple(1.0 + sum(e >= step for step in steps) for e in counts)

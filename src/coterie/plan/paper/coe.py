"""Figures 1 and 12 and Table V: Samba-CoE on three nodes, given the costs of an expert and a switch.

An account of these costs is a `Node` per machine: by the paper's arithmetic, or from modelled machines.

Knows nothing about where the costs come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coterie.plan.paper.arithmetic import (
    BATCHES,
    DGX,
    LONG,
    NODES,
    SHORT,
    Node,
    constant,
    fitted_latencies,
    fitted_rules,
    nodes,
)
from coterie.plan.paper.published import compare, data, published
from coterie.plan.paper.row import Chart, Exhibit, Kind, Method, Row, Series, bars
from coterie.plan.paper.samba import PAPERS_STACK, modelled_nodes, stack_factors

FIGURE_1, FIGURE_12, TABLE_5 = "Figure 1", "Figure 12", "Table V"


@dataclass(frozen=True, slots=True)
class Account:
    """The costs of the three nodes by one method."""

    method: Method
    nodes: Mapping[str, Node]

    @property
    def label(self) -> str:
        """Its label in charts."""
        return self.method.value if not self.note else f"machine, {PAPERS_STACK}"

    @property
    def note(self) -> str:
        """What is fitted in it, in words."""
        is_stack = self.method is Method.MACHINE and self.worst(*NODES) is Kind.FITTED
        return f"DGX with the software {PAPERS_STACK}, fitted to one GPU" if is_stack else ""

    def worst(self, *names: str, batch: int = 1) -> Kind:
        """The weakest kind among these nodes and, for a batch above 1, the rule for its router, which is fitted."""
        kinds = {self.nodes[name].kind for name in names}
        if batch > 1 and self.method is Method.CLOSED_FORM:
            kinds.add(Kind.FITTED)
        return next(kind for kind in (Kind.FITTED, Kind.PREDICTED, Kind.GIVEN) if kind in kinds)


def accounts() -> tuple[Account, ...]:
    """All accounts, the paper's first."""
    return (
        Account(Method.CLOSED_FORM, nodes()),
        Account(Method.MACHINE, modelled_nodes()),
        Account(Method.MACHINE, modelled_nodes(PAPERS_STACK)),
    )


def _added(rows: list[Row], row: Row) -> None:
    """Append a row unless it repeats a predicted one: the software of a DGX does not affect other machines."""
    known = {r.row: r.ours for r in rows if r.method is row.method and r.kind is Kind.PREDICTED}
    if known.get(row.row, math.nan) != row.ours:
        rows.append(row)


def figure_1() -> Exhibit:
    """Time of a batch and of its switches, with 150 experts."""
    rows: list[Row] = []
    for account in accounts():
        for value in published("figure-1").values():
            name, batch, what = value.row.split(", ")
            node, size = account.nodes[name], int(batch.removeprefix("BS="))
            if what == "switching":
                ours, kind = size * node.switch_ms, account.worst(name)
            else:
                ours, kind = node.latency_ms(size, SHORT, miss=True), account.worst(name, batch=size)
            _added(rows, compare(FIGURE_1, value, ours, kind, account.method, account.note))
    chart = bars("One batch of Samba-CoE, 150 experts, 20 tokens", "ms", rows, log_y=True)
    fitted = (*fitted_latencies()[:2], *fitted_rules("router_batch"), *stack_factors())
    about = "Switching and total time of a batch of 8 prompts and of 1, 150 experts, 20 output tokens"
    return Exhibit("figure-1", FIGURE_1, about, tuple(rows), fitted, (chart,))


def figure_12() -> Exhibit:
    """Latency over the number of experts: the plateaus, and where experts no longer fit in HBM."""
    rows: list[Row] = []
    for account in accounts():
        for value in published("figure-12").values():
            name, batch, what = value.row.split(", ")
            node, size = account.nodes[name], int(batch.removeprefix("BS="))
            _added(rows, _figure_12_row(account, node, size, what, value.row))
    about = "Latency of a batch against the number of experts, 20 output tokens: plateaus, and where they begin"
    charts = tuple(_latency_chart(batch) for batch in BATCHES)
    fitted = (*fitted_latencies()[:2], *fitted_rules("router_batch", "kv_gb"), *stack_factors())
    return Exhibit("figure-12", FIGURE_12, about, tuple(rows), fitted, charts)


def _figure_12_row(account: Account, node: Node, batch: int, what: str, name: str) -> Row:
    value = published("figure-12")[name]
    if what.startswith("first count"):
        out = first_count(lambda experts: not node.fits_hbm(experts, batch))
        # Where experts leave HBM depends on the reserved KV cache, which was chosen to match.
        kind = Kind.FITTED if account.method is Method.CLOSED_FORM else account.worst(node.name)
        return compare(FIGURE_12, value, out, kind, account.method, account.note)
    ours = node.latency_ms(batch, SHORT, miss=what == "every prompt a switch")
    return compare(FIGURE_12, value, ours, account.worst(node.name, batch=batch), account.method, account.note)


def table_5() -> Exhibit:
    """The speedups of the SN40L node."""
    rows: list[Row] = []
    for account in accounts():
        for value in published("table-5").values():
            ours = _speedup(account.nodes, value.row)
            # A DGX's capacity does not depend on the SN40L.
            kind = account.worst(_dgx(value.row)) if value.row.startswith("first count") else account.worst(*NODES)
            _added(rows, compare(TABLE_5, value, ours, kind, account.method, account.note))
    fitted = (*fitted_latencies(), *fitted_rules("router_batch"), *stack_factors())
    ratios = [row for row in rows if row.unit == "x"]
    about = "Speedup of the SN40L node over DGX A100 and DGX H100 on Samba-CoE with 150 experts"
    return Exhibit(
        "table-5", TABLE_5, about, tuple(rows), fitted, (bars("SN40L node over DGX", "x", ratios),), _notes()
    )


def _notes() -> tuple[str, ...]:
    measured, model = nodes()["SN40L"].expert_ms, modelled_nodes()["SN40L"].expert_ms
    token, ours = ((ms[LONG] - ms[SHORT]) / (LONG - SHORT) for ms in (measured, model))
    lacks = measured[SHORT] - SHORT * token - (model[SHORT] - SHORT * ours)
    return (
        f"SN40L, {SHORT} tokens: {measured[SHORT]:.1f} ms measured, {model[SHORT]:.0f} ms predicted. The {LONG}-token "
        f"ratios of Table V mean {token:.1f} ms a token, which is near what the model says ({ours:.1f} ms), and some "
        f"{lacks:.0f} ms more once a request, which it lacks: the host's work around a request, which the paper "
        "describes (Fig. 9: each step acknowledges the host) but does not time",
    )


def _dgx(row: str) -> str:
    return next(name for name in DGX if row.endswith(name))


def _speedup(nodes: Mapping[str, Node], row: str) -> float | None:
    theirs, ours = nodes[_dgx(row)], nodes["SN40L"]
    if row.startswith("first count"):
        return first_count(lambda experts: not theirs.fits(experts))
    if row.startswith("model switching"):
        return theirs.switch_ms / ours.switch_ms
    tokens = LONG if f"{LONG} tokens" in row else SHORT
    if row.startswith("expert only"):
        return theirs.expert_ms[tokens] / ours.expert_ms[tokens]
    batch = next(size for size in BATCHES if f"BS={size}," in row)
    return theirs.latency_ms(batch, tokens, miss=True) / ours.latency_ms(batch, tokens, miss=True)


def first_count(holds: Callable[[int], bool]) -> float | None:
    """The first of Fig. 12's sampled expert counts for which `holds` is true; None if there is none."""
    return next((float(experts) for experts in data("figure-12")["experts"] if holds(experts)), None)


def _latency_chart(batch: int) -> Chart:
    counts = tuple(float(experts) for experts in data("figure-12")["experts"])
    series = []
    for name in NODES:
        series.append(Series(f"{name}, published", counts, _published_curve(name, batch, counts), is_published=True))
        for account in accounts():
            node = account.nodes[name]
            if account.note and name == "SN40L":
                continue
            drawn = tuple(
                node.latency_ms(batch, SHORT, miss=not node.fits_hbm(int(e), batch)) if node.fits(int(e)) else None
                for e in counts
            )
            series.append(Series(f"{name}, {account.label}", counts, drawn))
    return Chart(f"Latency of a batch of {batch}, 20 tokens", "steps", "experts", "ms", tuple(series), log_y=True)


def _published_curve(name: str, batch: int, counts: tuple[float, ...]) -> tuple[float | None, ...]:
    def value(what: str) -> float | None:
        found = published("figure-12").get(f"{name}, BS={batch}, {what}")
        return found.value if found else None

    near, far, border = value("experts in HBM"), value("every prompt a switch"), value("first count out of HBM")
    last = counts[-1] if name == "SN40L" else constant("experts")
    return tuple(
        None if e > last else (near if near is not None and border is not None and e < border else far) for e in counts
    )

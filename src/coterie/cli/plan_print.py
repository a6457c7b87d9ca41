"""Prints the results of `coterie plan`: tables, sentences, a page.

Knows nothing about how they were computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.options import out
from coterie.core.units import format_bytes, format_count, format_seconds
from coterie.plan.choose import Choice, Limits
from coterie.plan.paper.html import document
from coterie.plan.paper.plots import svg
from coterie.plan.paper.row import Chart, Series

Rows = Sequence[Mapping[str, Any]]


def print_plan(head: str, rows: Rows, checked: bool, in_all: Sequence[Choice], limits: Limits) -> None:
    """For each part, a table of all machines and remarks on each; then the totals."""
    out.print(escape(head))
    parts = dict.fromkeys(row["experts"] for row in rows)
    for part in parts:
        own = [row for row in rows if row["experts"] == part]
        out.print(_table(own, checked, part if len(parts) > 1 else ""))
        for row in own:
            _print_row(row)
    _print_in_all(rows, in_all, limits, len(parts) > 1)
    out.print("modelled, not measured; routes are given, tokens synthetic", style="dim")


def _table(rows: Rows, checked: bool, part: str) -> Table:
    priced = any(row.get("price") for row in rows)
    heads = ["machine", "machines", *(["estimate"] if checked else []), "TTFT", "TPOT", "steps", "link", "hits"]
    heads += ["power", *(["price"] if priced else [])]
    title = f"{part}: {rows[0]['rate_per_s']:.3g} requests/s" if part else None
    columns = (Column(head, overflow="fold", no_wrap=head != "machine") for head in heads)
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        if row["machines"] is None:
            table.add_row(row["machine"], "none", *["-"] * (len(heads) - 2))
            continue
        times = (format_seconds(row["ttft_s"]), format_seconds(row["tpot_s"]) if row["tpot_s"] else "-")
        shares = (f"{row['steps_share']:.0%}", f"{row['link_share']:.0%}", f"{row['hit_rate']:.0%}")
        counts = [str(row[name]) for name in ("machines", *(["estimate"] if checked else []))]
        costs = [_watts(row["power_w"]), *([_money(row["price"])] if priced else [])]
        table.add_row(row["machine"], *counts, *times, *shares, *costs)
    return table


def _print_in_all(rows: Rows, in_all: Sequence[Choice], limits: Limits, several: bool) -> None:
    """Print totals over all parts; with a single part only if limits are exceeded, as its table has the rest."""
    limited = limits.power_w is not None or limits.price is not None
    for choice in in_all:
        over = choice.exceeds(limits)
        if not several and not over:
            continue
        each = ""
        if several and len({option.machine for option in choice.options}) > 1:
            names = {row["part"]: row["experts"] for row in rows}
            each = ": " + "; ".join(f"{o.machines} {o.machine} for {names[o.part]}" for o in choice.options)
        count = f"{choice.machines} machine{'' if choice.machines == 1 else 's'}{each}"
        costs = [_watts(choice.power_w)] if choice.power_w is not None else []
        costs += [f"price {_money(choice.price)}"] if choice.price is not None else []
        verdict = f"; {over}" if over else ("; within the limits" if limited else "")
        out.print(f"in all, {choice.name}: {', '.join([count, *costs])}{verdict}", markup=False)


def _print_row(row: Mapping[str, Any]) -> None:
    def say(text: str) -> None:
        out.print(f"  {row['machine']}: {text}", markup=False)

    if row["machines"] is None:
        say(row["infeasible"])
        return
    say(f"bound by {row['bound']}")
    say(f"times by {row['known_by']}")
    best = ", ".join(f"{item['what']} {item['load_factor']:.2f}" for item in row["helps"][:3])
    say(f"load that the same machines could take, were one part 1.5 times as good: {best}")
    room, switch = format_bytes(row["near_bytes"]), format_seconds(row["switch_s"])
    often = f", and there are {row['switches_per_s']:.3g} a second" if row["switches_per_s"] else ""
    beside = f" beside {format_bytes(row['bases_bytes'])} of bases" if row["bases_bytes"] else ""
    say(f"room for {room} of experts in the run tier{beside}; a switch of the largest takes {switch}{often}")
    why = f": {row['method_why']}" if row["method_why"] else ""
    copied = f", {format_count(len(row['replicated']), 'expert')} on several machines" if row["replicated"] else ""
    held = [len(names) for names in row["placement"]]
    each = "" if min(held) == max(held) else f"{min(held)} to "
    each += f"{format_count(max(held), 'expert')} each"
    say(f"placement by {row['method']}, {each}{copied}{why}; planned in {format_seconds(row['wall_s'])}")
    load = row["curve_load_factor"]
    scaled = "" if load == 1 else f", estimated at {load:.2f} of the load"
    if load == 1 and row["estimate"] != row["machines"]:
        scaled = ", estimated but for the number asked about"
    counts = ", ".join(f"{p['experts']}: {p['machines'] or 'none'}" for p in row["curve"])
    say(f"experts: machines  {counts}{scaled}")
    if "check" in row:
        kept = ", ".join(
            f"{n} machine{'' if n == '1' else 's'} keep{'s' if n == '1' else ''} it for {share:.1%}"
            for n, share in row["check"]["kept"].items()
        )
        verdict = "as estimated" if row["check"]["agrees"] else f"the estimate was {row['estimate']}"
        say(f"simulated: {kept}; {verdict}")


def plan_page(title: str, rows: Rows) -> str:
    """A page with the number of machines over the number of experts."""
    several = len({row["experts"] for row in rows}) > 1
    series = tuple(
        Series(
            f"{row['machine']}, {row['experts']}" if several else row["machine"],
            tuple(p["experts"] for p in row["curve"]),
            tuple(p["machines"] or None for p in row["curve"]),
        )
        for row in rows
        if row["machines"] is not None
    )
    return document(title, [svg(Chart("Machines over experts", "lines", "experts", "machines", series))])


def _watts(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.3g} kW" if value >= 1000 else f"{value:.3g} W"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"

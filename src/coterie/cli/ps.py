"""`coterie ps`: shows where a running server's experts are, and what they do.

Knows nothing about engines: it asks the server's GET /v1/status.
"""

from __future__ import annotations

import json
import sys
import time
from http import HTTPStatus
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.options import JsonOpt, out, print_full_width, print_json, report_errors, short_base
from coterie.core.errors import UsageError
from coterie.core.http_get import Answer, get_json
from coterie.core.units import format_bytes, format_count, format_seconds
from coterie.server.keys import bearer

TOKENS = "tokens"  # the output of ordinary experts, which needs no column
ORDER = ("resident", "loading", "absent")
STYLES = {"resident": "green", "loading": "yellow", "absent": "dim"}


@report_errors
def ps(
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    json_: JsonOpt = False,
    watch: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Refresh at this interval until interrupted.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="COTERIE_API_KEY", help="The server's key, if it needs one.")
    ] = None,
) -> None:
    """Show a running server's experts: where each is and what it does."""
    status = ask(url, api_key)
    if watch is None:
        print_json(status) if json_ else print_full_width(show(status, url, whole=True))
        return
    try:
        if json_:
            while True:
                sys.stdout.write(json.dumps(status) + "\n")
                sys.stdout.flush()
                time.sleep(watch)
                status = ask(url, api_key)
        with Live(show(status, url), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(watch)
                live.update(show(ask(url, api_key), url), refresh=True)
    except KeyboardInterrupt:
        return


def ask(url: str, api_key: str | None = None) -> dict[str, Any]:
    """The status of the server at `url`. Raises UsageError if there is none, or if it refuses."""
    answer = get_json(url, "/v1/status", bearer(api_key))
    if answer.status != HTTPStatus.OK:
        raise UsageError(url, *_refusal(answer))
    status = answer.body
    if not isinstance(status, dict) or status.get("object") != "status":
        raise UsageError(url, *_STRANGER)
    return status


_STRANGER = ("what answers there is no coterie server", "say with --url where one is")


def _refusal(answer: Answer) -> tuple[str, str]:
    """Fact and remedy for an answer that is not a status: the server's own sentence, if it gave one."""
    try:
        message = str(answer.body["error"]["message"])
    except (KeyError, TypeError):
        message = answer.reason
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return f"the server wants a key: {message}", "give --api-key, or set COTERIE_API_KEY"
    if answer.status == HTTPStatus.NOT_FOUND:
        return _STRANGER
    return f"the server answers {answer.status}: {message}", "look at its log"


def show(status: dict[str, Any], url: str, whole: bool = False) -> Group:
    """Tables, below a line that says what is served. `whole`: do not wrap names, however long."""
    name, device = escape(status["composition"]), escape(status["device"])
    count = sum(expert["state"] == "resident" for expert in status["experts"])
    here = f"{count} of {format_count(len(status['experts']), 'expert')} resident"
    first = f"[bold]{name}[/bold] on {device} at {escape(url)}: {here}, "
    first += f"{format_count(status['running'], 'request')} running, {status['waiting']} waiting"
    lacks = [escape(f"note: nothing is drafted: {lack}") for lack in status.get("lacks", ())]
    lacks += [escape(f"{name} is left out: {why}") for name, why in status.get("left_out", {}).items()]
    lacks += [escape(f"{name} has stopped: {why}") for name, why in status.get("broken", {}).items()]
    lacks += [escape(f"{name} is asked last: {why}") for name, why in status.get("avoided", {}).items()]
    lacks += [escape(f"{name} is not pinned any more: {why}") for name, why in status.get("unpinned", {}).items()]
    ages = status.get("late", {}).items()
    lacks += [escape(f"note: {name} is as of {format_seconds(age)} ago: it is in a long step") for name, age in ages]
    return Group(first, *lacks, _experts(status, whole), *_priorities(status), _tiers(status))


def _experts(status: dict[str, Any], whole: bool) -> Table:
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("size", "run", "wait", "last use")]
    words = [Column(name, no_wrap=True) for name in ("state", "tier", "pin")]
    adapters = any(expert.get("base") for expert in status["experts"])
    others = any(expert.get("gives", TOKENS) != TOKENS for expert in status["experts"])
    optional = [Column("gives", no_wrap=True)] if others else []
    optional += [Column("base", overflow="fold", no_wrap=whole)] if adapters else []
    on = _devices_of(status)
    optional += [Column("on", no_wrap=True)] if on else []
    table = Table(Column("expert", overflow="fold", no_wrap=whole), *words, *numbers, *optional, box=SIMPLE_HEAD)
    for expert in sorted(status["experts"], key=lambda found: ORDER.index(found["state"])):
        used_s, style = expert["last_used_s"], STYLES[expert["state"]]
        table.add_row(
            escape(expert["name"]),
            f"[{style}]{expert['state']}[/{style}]",
            expert["tier"],
            "yes" if expert["pinned"] else "",
            format_bytes(expert["size_bytes"]),
            str(expert["running"] or ""),
            str(expert["waiting"] or ""),
            "never" if used_s is None else f"{format_seconds(status['now_s'] - used_s)} ago",
            *([expert.get("gives", TOKENS)] if others else []),
            *([escape(short_base(expert["base"]))] if adapters else []),
            *([escape(", ".join(on.get(expert["name"], ())))] if on else []),
        )
    return table


def _devices_of(status: dict[str, Any]) -> dict[str, list[str]]:
    """The devices on which each expert is resident or loading; empty if there is only one device."""
    found: dict[str, list[str]] = {}
    for name, its in status.get("devices", {}).items():
        for expert in its["experts"]:
            found.setdefault(expert["name"], []).extend([name] if expert["state"] != "absent" else [])
    return found


def _priorities(status: dict[str, Any]) -> list[Table]:
    """A table of requests by priority; none if no request has had one."""
    each = status.get("priorities", {})
    asked = {name: its for name, its in each.items() if its["waiting"] or its["queued"]["count"]}
    if asked.keys() <= {"usual"}:
        return []
    heads = ("run", "wait", "of it paused", "pauses so far", "queued, mean", "first token, mean")
    table = Table("priority", *[Column(name, justify="right") for name in heads], box=SIMPLE_HEAD)
    for name, its in asked.items():
        counts = [str(its[name] or "") for name in ("running", "waiting", "paused", "pauses")]
        table.add_row(name, *counts, *[_mean(its[name]) for name in ("queued", "ttft")])
    return [table]


def _mean(times: dict[str, float]) -> str:
    return format_seconds(times["sum_s"] / times["count"]) if times["count"] else "-"


def _tiers(status: dict[str, Any]) -> Table:
    numbers = [Column(name, justify="right") for name in ("used", "capacity", "share", "holds")]
    table = Table("memory", "of", *numbers, box=SIMPLE_HEAD)

    def add(tier: str, of: str, used_bytes: int, capacity_bytes: int, holds: str) -> None:
        share = used_bytes / capacity_bytes if capacity_bytes else 0.0
        table.add_row(tier, of, format_bytes(used_bytes), format_bytes(capacity_bytes), f"{share:.0%}", holds)

    for tier in status["tiers"]:
        holds = f"{tier['experts']} {'of them' if tier['of'] == 'bases' else 'experts'}"
        add(tier["tier"], tier["of"], tier["used_bytes"], tier["capacity_bytes"], holds)
    kv = status["kv"]
    used, capacity = (blocks * kv["block_bytes"] for blocks in (kv["used"], kv["blocks"]))
    add(status["tiers"][0]["tier"], "KV cache", used, capacity, f"{kv['cached']} blocks known")
    return table

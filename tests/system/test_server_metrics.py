"""GET /metrics: read by prometheus_client's own parsers, and held to what the requests did."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus
from tests.system.serving import served

from coterie.api import Coterie, Message, Options, Query
from coterie.engine.metrics import BUCKETS_S
from coterie.server.metrics import StatusCollector

ORDER = ("ada", "bob", "cyd", "ada", "ada", "four", "dan")


def scrape(client: httpx.Client) -> dict[str, Metric]:
    got = client.get("/metrics")
    assert got.status_code == 200
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in parse_prometheus(got.text)}


def values(families: dict[str, Metric], name: str, suffix: str = "", **labels: str) -> list[float]:
    found = [s for s in families[name].samples if s.name == name + suffix]
    return [s.value for s in found if labels.items() <= s.labels.items()]


def value(families: dict[str, Metric], name: str, suffix: str = "", **labels: str) -> float:
    (found,) = values(families, name, suffix, **labels)
    return found


def total(families: dict[str, Metric], name: str, **labels: str) -> float:
    return value(families, f"coterie_{name}", "_total", **labels)


def collected(coterie: Coterie) -> dict[str, Metric]:
    return {family.name: family for family in StatusCollector(coterie.status()).collect()}


@pytest.fixture(scope="module")
def asked(composition: Path) -> tuple[dict[str, Metric], dict[str, Metric], list[dict[str, Any]], Coterie]:
    """Scraped before and after requests one by one, with a budget of two of four experts, and their answers."""
    coterie = Coterie.open(composition, Options(near_bytes=200 * 1024))
    with served(coterie) as url, httpx.Client(base_url=url, timeout=60) as client:
        before, answers = scrape(client), []
        for name in ORDER:
            text = "one question that is longer than a block of the cache"
            body = {"model": name, "max_tokens": 7, "messages": [{"role": "user", "content": text}]}
            answers.append(client.post("/v1/chat/completions", json=body).json())
        assert client.post("/v1/chat/completions", json={**body, "model": "eve"}).status_code == 404
        return before, scrape(client), answers, coterie


def test_nothing_has_happened_before(asked: tuple) -> None:
    families = asked[0]
    assert {s.value for f in families.values() if f.type == "counter" for s in f.samples} == {0.0}
    assert values(families, "coterie_expert_resident") == [0.0] * 4
    assert value(families, "coterie_kv_blocks", state="free") == sum(values(families, "coterie_kv_blocks"))
    assert value(families, "coterie_tier_used_bytes", tier="dram", of="experts") == 0


def test_counters_say_what_the_answers_say(asked: tuple) -> None:
    _, families, answers, _ = asked
    assert total(families, "requests_submitted") == total(families, "requests_admitted") == len(ORDER)
    for reason in ("stop", "length", "error", "cancelled"):
        ended = sum(a["choices"][0]["finish_reason"] == reason for a in answers)
        assert total(families, "requests_finished", reason=reason) == ended
    assert total(families, "hits") == sum(a["coterie"]["hit"] for a in answers)
    assert total(families, "misses") == total(families, "switches") == sum(not a["coterie"]["hit"] for a in answers)
    assert total(families, "misses") > 2
    assert total(families, "prompt_tokens") == sum(a["usage"]["prompt_tokens"] for a in answers)
    cached = sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers)
    assert total(families, "cached_tokens") == cached > 0
    assert total(families, "drawn_tokens") == sum(a["usage"]["completion_tokens"] for a in answers)
    assert total(families, "failed_fetches") == 0
    assert len(ORDER) <= total(families, "steps") <= 8 * len(ORDER)


def test_each_expert_has_its_own_counts(asked: tuple) -> None:
    _, families, answers, coterie = asked
    for name in coterie.composition.names:
        its = [answer for answer in answers if answer["coterie"]["expert"] == name]
        expected = {
            "finished": len(its),
            "failed": 0,
            "prompt_tokens": sum(answer["usage"]["prompt_tokens"] for answer in its),
            "drawn_tokens": sum(answer["usage"]["completion_tokens"] for answer in its),
            "switches": sum(not answer["coterie"]["hit"] for answer in its),
        }
        assert {what: total(families, f"expert_{what}", expert=name) for what in expected} == expected
    fallbacks = [answer for answer in answers if answer["coterie"]["is_fallback"]]
    assert total(families, "fallbacks") == len(fallbacks) > 0


@pytest.mark.parametrize(
    ("name", "what"), [("time_to_first_token", "ttft_s"), ("switch", "switch_s"), ("time_per_output_token", "")]
)
def test_histograms_hold_the_answers_durations(asked: tuple, name: str, what: str) -> None:
    _, families, answers, _ = asked
    said = [a["coterie"] for a in answers]
    if what:
        durations = [s[what] for s in said if s[what]]
    else:
        durations = [1 / s["tokens_per_s"] for s in said if s["tokens_per_s"]]
    family = f"coterie_{name}_seconds"
    usual = {"priority": "usual"} if what == "ttft_s" else {}
    assert value(families, family, "_count", **usual) == len(durations) > 0
    assert value(families, family, "_sum", **usual) == pytest.approx(sum(durations))
    assert sum(values(families, family, "_count")) == len(durations)
    ends = {float(s.labels["le"]): s.value for s in families[family].samples
            if "le" in s.labels and usual.items() <= s.labels.items()}  # fmt: skip
    for end in (*BUCKETS_S, math.inf):
        count = ends[end]
        # A duration is worked out from two moments on both sides: at the end of a bucket the last bit may differ.
        assert sum(d < end * (1 - 1e-9) for d in durations) <= count <= sum(d <= end * (1 + 1e-9) for d in durations)


def test_memory_is_what_the_cache_says(asked: tuple) -> None:
    _, families, _, coterie = asked
    size = coterie.models["ada"].layout.size_bytes
    there = set(coterie.resident())
    assert {n for n in coterie.models if value(families, "coterie_expert_resident", expert=n)} == there
    assert values(families, "coterie_expert_size_bytes") == [size] * 4
    assert value(families, "coterie_tier_experts", tier="dram", of="experts") == len(there)
    assert value(families, "coterie_tier_capacity_bytes", tier="dram", of="experts") == coterie.plan.near_bytes
    used = value(families, "coterie_tier_used_bytes", tier="dram", of="experts")
    assert size * len(there) <= used <= coterie.plan.near_bytes
    misses = total(families, "misses")
    assert total(families, "evictions", tier="dram") == misses - len(there)
    assert total(families, "moved_bytes", link="disk->dram") == total(families, "fetched_bytes") == misses * size
    assert sum(values(families, "coterie_kv_blocks")) == coterie.parts.kv.num_blocks
    assert value(families, "coterie_kv_blocks", state="cached") > 0
    assert value(families, "coterie_kv_block_bytes") == coterie.plan.block_bytes
    labels = families["coterie_info"].samples[0].labels
    assert (labels["composition"], labels["device"]) == ("four", coterie.parts.device.spec.name)


def test_who_waits_and_who_runs_is_counted_for_each_expert(composition: Path) -> None:
    with Coterie.open(composition) as coterie:
        for name in ("ada", "ada", "cyd"):
            coterie.submit(Query((Message("user", "x"),), name, max_tokens=60, ignore_end=True))
        waiting = collected(coterie)
        while not coterie.status().expert("ada").running:
            coterie.step()
        running = collected(coterie)
    assert [value(waiting, "coterie_expert_requests", expert=n, state="waiting") for n in coterie.models] == [
        2,
        0,
        1,
        0,
    ]
    assert [value(running, "coterie_expert_requests", expert=n, state="running") for n in ("ada", "bob")] == [2, 0]
    for families in (waiting, running):
        for state in ("waiting", "running"):
            of_all = value(families, "coterie_requests", state=state)
            assert of_all == sum(values(families, "coterie_expert_requests", state=state))
    assert value(running, "coterie_kv_blocks", state="used") > 0 == value(waiting, "coterie_kv_blocks", state="used")


def test_requests_are_counted_by_the_priority_that_they_were_asked_with(composition: Path) -> None:
    with Coterie.open(composition) as coterie:
        for priority in (-7, 0, 1, 2**40, 2**40 + 1):
            asked = Query((Message("user", "x"),), "ada", max_tokens=3, ignore_end=True, priority=priority)
            coterie.submit(asked)
        waiting = collected(coterie)
        while not coterie.idle:
            coterie.step()
        ended = collected(coterie)
    ranks = ("urgent", "usual", "behind")
    for families, count in ((waiting, 0), (ended, 1)):
        of = {r: value(families, "coterie_priority_requests", priority=r, state="waiting") for r in ranks}
        assert of == {"urgent": 1 - count, "usual": 1 - count, "behind": 3 * (1 - count)}
        assert sum(of.values()) == value(families, "coterie_requests", state="waiting")
        for name in ("coterie_queue_seconds", "coterie_time_to_first_token_seconds"):
            counts = [value(families, name, "_count", priority=r) for r in ranks]
            assert counts == [count, count, 3 * count]
        assert values(families, "coterie_preempted_requests") == [0, 0, 0]
        assert values(families, "coterie_preemptions", "_total") == [0, 0, 0]


def test_what_seldom_happens_is_shown_too(composition: Path) -> None:
    with Coterie.open(composition) as coterie:
        status = coterie.status()
    ada, bob, *others = status.experts
    experts = (replace(ada, state="loading"), replace(bob, state="resident", pinned=True), *others)
    status.metrics.failed_fetches, status.metrics.refused = 8, 9
    by_priority = {name: replace(its, waiting=6, paused=5) for name, its in status.by_priority.items()}
    status.metrics.by_priority["behind"].pauses = 4
    families = {
        f.name: f for f in StatusCollector(replace(status, experts=experts, held=7, by_priority=by_priority)).collect()
    }
    assert value(families, "coterie_preempted_requests", priority="urgent") == 5
    assert total(families, "preemptions", priority="behind") == 4
    assert values(families, "coterie_expert_loading") == [1, 0, 0, 0]
    assert values(families, "coterie_expert_resident") == values(families, "coterie_expert_pinned") == [0, 1, 0, 0]
    assert value(families, "coterie_held_requests") == 7
    assert (total(families, "failed_fetches"), total(families, "requests_refused")) == (8, 9)


def test_names_are_as_prometheus_wants_them(asked: tuple) -> None:
    for name, family in asked[1].items():
        assert name.startswith("coterie_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        assert family.type != "histogram" or name.endswith("_seconds")
        assert ("bytes" in name) == name.endswith("_bytes")


def test_openmetrics_is_given_to_who_asks_for_it(composition: Path) -> None:
    with served(Coterie.open(composition)) as url:
        accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
        got = httpx.get(f"{url}/metrics", headers=accept)
        plain = httpx.get(f"{url}/metrics").text
    assert got.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in parse_openmetrics(got.text)}
    assert families.pop("coterie") == "info"
    assert families == {f.name: f.type for f in parse_prometheus(plain) if f.name != "coterie_info"}

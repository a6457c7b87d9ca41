"""What Coterie.status says is what is so: of experts, tiers, the KV cache and the queue, at every step of a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from coterie.api import Coterie, Message, Options, Query, Status
from coterie.api import status as module
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import ClosedError
from coterie.memory.cache import Stats
from coterie.memory.slab import round_up

NAMES = ("ada", "bob", "cyd", "dan")


def query(
    name: str, text: str = "a question that fills more than one block of the cache", max_tokens: int = 6
) -> Query:
    return Query((Message("user", text),), name, max_tokens=max_tokens, ignore_end=True)


def check_sums(coterie: Coterie, status: Status) -> None:
    """What status says of one thing in two places, and what the owners of these accounts say."""
    metrics, near = status.metrics, status.tiers[0]
    assert (status.running, status.waiting) == (
        metrics.admitted - sum(metrics.finished.values()),
        metrics.submitted - metrics.admitted,
    )
    for tier in status.tiers:
        assert 0 <= tier.used_bytes <= tier.capacity_bytes
    there = [expert for expert in status.experts if expert.state != "absent"]
    assert near.used_bytes == sum(round_up(expert.size_bytes) for expert in there)
    assert near.experts == len(there)
    assert {expert.name for expert in there} == set(coterie.resident())
    assert all((expert.state == "resident") == (expert.tier == near.tier) for expert in status.experts)
    kv = status.kv
    assert kv.used + kv.cached <= kv.blocks == coterie.parts.kv.num_blocks
    assert (kv.used > 0) == (status.running > 0)


def test_before_anything_was_asked_everybody_is_absent(composition: Path) -> None:
    with Coterie.open(composition) as coterie:
        status = coterie.status()
    assert [expert.name for expert in status.experts] == list(NAMES)
    assert {(e.state, e.tier, e.pinned, e.running, e.waiting, e.last_used_s) for e in status.experts} == {
        ("absent", "disk", False, 0, 0, None)
    }
    assert {e.architecture for e in status.experts} == {coterie.models["ada"].key[:8]}
    assert [(t.tier, t.of, t.used_bytes, t.experts) for t in status.tiers] == [("dram", "experts", 0, 0)]
    assert (status.kv.used, status.kv.cached, status.running, status.waiting) == (0, 0, 0, 0)
    with pytest.raises(KeyError, match="eve"):
        status.expert("eve")
    with pytest.raises(ClosedError):
        coterie.status()


def test_every_step_of_a_run_with_evictions_adds_up(composition: Path) -> None:
    """A budget of two of the four experts."""
    with Coterie.open(composition, Options(near_bytes=200 * 1024)) as coterie:
        for name in (*NAMES, "ada", "ada"):
            coterie.submit(query(name))
        waiting = {expert.name: expert.waiting for expert in coterie.status().experts}
        assert waiting == {"ada": 3, "bob": 1, "cyd": 1, "dan": 1}
        states, before = Counter(), coterie.status()
        asked = before.to_dict()
        while not coterie.idle:
            coterie.step()
            status = coterie.status()
            check_sums(coterie, status)
            states.update(expert.state for expert in status.experts)
        assert before.to_dict() == asked, "a status changes with what it was taken of"
        assert set(states) == {"absent", "loading", "resident"}
        assert all(0 <= (expert.last_used_s or -1) <= status.now_s for expert in status.experts)
        assert status.moves.evictions == {"dram": 2}
        assert status.moves.moved_bytes == {"disk->dram": status.metrics.fetched_bytes}
        assert status.metrics.finished == {"length": 6}
        assert status.kv.cached > 0
        assert json.loads(json.dumps(status.to_dict()))["metrics"]["ttft"]["count"] == 6


def test_who_is_pinned_and_when_who_answered_last(composition: Path) -> None:
    with Coterie.open(composition) as coterie:
        coterie.ask(query("bob"))
        first = coterie.status().expert("bob")
        answer = coterie.ask(query("ada"))
        coterie.parts.cache.pin("ada")
        status = coterie.status()
    assert [expert.pinned for expert in status.experts] == [True, False, False, False]
    assert status.expert("bob").last_used_s == first.last_used_s
    assert status.expert("ada").last_used_s >= first.last_used_s + answer.total_s


def test_with_two_tiers_who_was_evicted_lies_in_the_lower_one(folder: Path) -> None:
    options = Options(device="synthetic:toy-tiers", near_bytes=200 * 1024)
    with Coterie.open(folder, options) as coterie:
        coterie.ask_all([query(name) for name in NAMES])
        status = coterie.status()
    places = Counter((expert.state, expert.tier) for expert in status.experts)
    assert places == {("resident", "hbm"): 2, ("absent", "ddr"): 2}
    assert [(tier.tier, tier.of, tier.experts) for tier in status.tiers] == [
        ("hbm", "experts", 2),
        ("ddr", "experts", 4),
    ]
    assert set(status.moves.moved_bytes) == {"disk->ddr", "ddr->hbm"}


def test_of_several_caches_every_count_is_the_sum() -> None:
    one = Stats(1, 2, 3, 4, {"hbm": 5, "ddr": 6}, {"disk->ddr": 7})
    other = Stats(10, 20, 30, 40, {"hbm": 50}, {"ddr->hbm": 60})
    moved = {"disk->ddr": 7, "ddr->hbm": 60}
    assert module.sum_of([one, other]) == Stats(11, 22, 33, 44, {"hbm": 55, "ddr": 6}, moved)
    assert (one.evictions, other.evictions) == ({"hbm": 5, "ddr": 6}, {"hbm": 50})


def test_the_routers_own_model_has_its_row_and_its_tiers(folder: Path, tmp_path: Path) -> None:
    text = f'name = "asked"\n[router]\nkind = "llm"\ncheckpoint = "{folder / "dan"}"\nquestion = "{{prompt}}"\n'
    text += f'max_tokens = 3\nfallback = "ada"\n[[expert]]\nname = "ada"\ncheckpoint = "{folder / "ada"}"\n'
    (tmp_path / "c.toml").write_text(text)
    with Coterie.open(tmp_path / "c.toml") as coterie:
        coterie.ask(Query.text("for ada"))
        coterie.pin("ada")  # the router's model needs no room beside it
        status = coterie.status()
    assert [(e.name, e.state) for e in status.experts] == [("ada", "resident"), (ROUTER, "resident")]
    assert [(t.tier, t.of, t.experts) for t in status.tiers] == [("dram", "experts", 1), ("dram", "router", 1)]
    assert status.moves.moved_bytes["disk->dram"] == sum(e.size_bytes for e in status.experts)

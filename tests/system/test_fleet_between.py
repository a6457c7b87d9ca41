"""What is asked of several devices between their steps: it waits for all of them, and keeps nothing else waiting."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.system.fleets import NAMES, TWO, following, held, queries
from tests.system.serving import served, until
from tests.system.tiny import write_expert

from coterie.api import Coterie, Fleet, Options, Query
from coterie.core.errors import ConflictError

BODY = {"messages": [{"role": "user", "content": "go on"}], "temperature": 0, "max_tokens": 12}


def query(name: str, tokens: int = 4) -> Query:
    return Query(Query.text("go on").messages, name, max_tokens=tokens, ignore_end=True)


def test_what_waits_for_one_device_keeps_no_answer_of_another_one_and_no_status(composition: Path) -> None:
    fleet = Fleet.open(composition, TWO)
    with served(fleet) as url, ThreadPoolExecutor(4) as pool:
        fleet.load("ada")
        (holder,) = [member for member in fleet._members if "ada" in member.snapshot.residents]
        busy = fleet._members[1 - holder.number]
        with held(fleet, [busy.number]):
            until(lambda: busy.known.busy_s > 0)
            waiting = pool.submit(httpx.post, f"{url}/v1/models/rescan", timeout=60)
            until(lambda: not holder._inbox._jobs.qsize())
            for stream in (False, True):
                body = {**BODY, "model": "ada", "stream": stream}
                answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
                assert (answer.status_code, "finish_reason" in answer.text) == (200, True)
            assert httpx.get(f"{url}/health").status_code == 200
            status = httpx.get(f"{url}/v1/status", timeout=60).json()
            assert (status["devices"].keys(), status["late"].keys()) == ({"cpu#0", "cpu#1"}, {busy.name})
            assert len(httpx.get(f"{url}/v1/models", timeout=60).json()["data"]) == 1 + len(NAMES)
            assert not waiting.done()
        assert waiting.result(60).status_code == 200
        assert httpx.get(f"{url}/v1/status").json()["late"] == {}


def test_what_a_query_waits_for_is_known_while_its_device_is_in_a_step(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        fleet.load("ada")
        with held(fleet):
            first, second = (fleet.submit(query(name)) for name in ("ada", "bob"))
            for request_id, expert, absent in ((first, "ada", False), (second, "bob", True)):
                found = fleet.watch.waiting(request_id)
                assert found is not None
                assert (found.expert, found.absent, found.num_waiting) == (expert, absent, 2)
        while not fleet.idle:
            fleet.step()
        assert fleet.watch.waiting(first) is None


def test_an_expert_renewed_on_one_device_is_not_asked_by_older_weights_on_another(tmp_path: Path) -> None:
    """It is pinned there when the rescan comes; the next one, once it is not, renews it there too."""
    for number, name in enumerate(("ada", "bob")):
        write_expert(tmp_path / name, number)
    asked = [query("ada") for _ in range(8)]
    with Fleet.open(tmp_path, TWO) as fleet:
        first, second = fleet._members
        fleet.ask_all(asked)
        assert min(one.coterie.parts.engine.metrics.submitted for one in fleet._members) > 0
        second.call(lambda coterie: coterie.pin("ada"))
        other = write_expert(tmp_path.parent / f"{tmp_path.name}-other", 5)
        shutil.copyfile(other / "model.safetensors", other / "new")
        (other / "new").replace(tmp_path / "ada" / "model.safetensors")  # and nothing beside the weights
        with Coterie.open(tmp_path) as one:
            expected = one.ask(query("ada")).token_ids
        found = fleet.rescan()
        assert (found.renewed, found.kept.keys()) == (("ada",), {"ada"})
        before = second.coterie.parts.engine.metrics.submitted
        assert {answer.token_ids for answer in fleet.ask_all(asked)} == {expected}
        assert second.coterie.parts.engine.metrics.submitted == before
        fleet.unpin("ada")
        assert fleet.rescan().kept == {}
        with held(fleet):
            ids = [fleet.submit(one) for one in asked]
        tokens = dict.fromkeys(ids, ())
        while not fleet.idle:
            for chunk in fleet.step():
                tokens[chunk.request_id] += chunk.token_ids
        assert set(tokens.values()) == {expected}
        assert second.coterie.parts.engine.metrics.submitted > before
        assert second.coterie.models["ada"] is first.coterie.models["ada"]


def test_where_one_device_refuses_a_pin_none_is_set_and_others_unload(composition: Path) -> None:
    """Room for two of four on each."""
    with Fleet.open(composition, Options(device="cpu", beside=("cpu",), near_bytes=200 * 1024)) as fleet:
        first, second = fleet._members
        for member in (first, second):
            member.coterie.load("ada")
            until(lambda member=member: "ada" in member.call(lambda coterie: coterie.resident()))
        first.call(lambda coterie: coterie.step(0.0))
        second.call(lambda coterie: coterie.step(0.0))
        first.snapshot, second.snapshot = first._take_snapshot(), second._take_snapshot()
        second.call(lambda coterie: coterie.pin("bob"))
        with pytest.raises(ConflictError, match="pin ada"):
            fleet.pin("ada")
        assert [one.expert("ada").pinned for one in fleet.status().devices.values()] == [False, False]
        second.call(lambda coterie: coterie.unpin("bob"))
        fleet.pin("ada")
        first.call(lambda coterie: coterie.unpin("ada"))
        with pytest.raises(ConflictError, match="unload ada on cpu#1"):
            fleet.unload("ada")
        assert [one.expert("ada").state for one in fleet.status().devices.values()] == ["absent", "resident"]


def test_a_snapshot_and_what_follows_it_count_each_request_once(composition: Path) -> None:
    """Whoever begins to read in the middle of much comes to the same counts as the server."""
    fleet = Fleet.open(composition, TWO)
    with served(fleet) as url, ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(httpx.post, f"{url}/v1/chat/completions", json={**BODY, "model": name}, timeout=60)
            for _ in range(12)
            for name in NAMES
        ]
        for _ in range(4):
            with following(url) as events:
                counts = Counter[tuple[str, str]]()
                snapshot = next(events)
                for expert in snapshot["experts"]:
                    for state in ("running", "waiting"):
                        counts[expert["name"], state] = expert[state]
                while counts.total():
                    event = next(events)
                    if event["event"] == "queued":
                        counts[event["expert"], "waiting"] += 1
                    elif event["event"] == "admitted":
                        counts[event["expert"], "waiting"] -= 1
                        counts[event["expert"], "running"] += 1
                    elif event["event"] == "ended":
                        counts[event["expert"], event["was"]] -= 1
                    assert min(counts.values()) >= 0
        assert {one.result(60).status_code for one in asked} == {200}


def test_what_ran_is_known_once_it_is_closed(composition: Path) -> None:
    with Fleet.open(composition, Options(device="cpu", beside=("cpu",), record=100)) as fleet:
        fleet.ask_all(queries())
    assert {lane.split()[0] for lane in {one.lane for one in fleet.trace().slices}} == {"cpu#0", "cpu#1"}


def test_all_devices_are_told_to_end_before_one_is_waited_for(composition: Path) -> None:
    fleet = Fleet.open(composition, TWO)
    with ThreadPoolExecutor(1) as pool, held(fleet, [0]):
        closing = pool.submit(fleet.close)
        fleet._members[1]._thread.join(60)
        assert not fleet._members[1]._thread.is_alive()
        assert fleet._members[0]._thread.is_alive()
        assert not closing.done()

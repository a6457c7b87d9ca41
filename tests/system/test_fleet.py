"""Several devices behind one endpoint: answers are those of one, nothing is lost, and each thing has its device."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest
from tests.system.fleets import NAMES, TEXTS, TWO, queries, routed
from tests.system.serving import served, until
from tests.system.test_llm_router import write

from coterie.api import Coterie, Fleet, Options, Query
from coterie.core.errors import ClosedError, CrowdedError, UsageError
from coterie.core.sampling import PartialSampling


def test_answers_are_those_of_one_device(composition: Path) -> None:
    with Coterie.open(composition) as one:
        expected = [(a.token_ids, a.text, a.expert) for a in one.ask_all(queries())]
    with Fleet.open(composition, TWO) as fleet:
        assert [(a.token_ids, a.text, a.expert) for a in fleet.ask_all(queries())] == expected
        assert fleet.idle
        submitted = [one.parts.engine.metrics.submitted for one in fleet.members]
        assert sum(submitted) == len(TEXTS)
        assert min(submitted) > 0
        assert set(fleet.resident()) == set(NAMES)
        for one in fleet.members:
            one.parts.engine.check_integrity()
            one.parts.cache.check_integrity()


def test_the_router_is_asked_once_and_chooses_the_same(composition: Path) -> None:
    texts = ["is bob here?", "what of cyd", "nobody"]
    with Coterie.open(composition) as one, Fleet.open(composition, TWO) as fleet:
        assert [fleet.route(Query.text(text)).expert for text in texts] == ["bob", "cyd", "dan"]
        asked = [Query(Query.text(text).messages, sampling=PartialSampling(temperature=0.0)) for text in texts]
        assert [a.token_ids for a in fleet.ask_all(asked)] == [a.token_ids for a in one.ask_all(asked)]


def test_what_is_opened_is_opened_once_and_cores_are_shared(composition: Path) -> None:
    with Fleet.open(composition, Options(device="cpu", beside=("cpu",), threads=2)) as fleet:
        first, second = fleet.members
        assert all(first.texts[name] is second.texts[name] for name in NAMES)
        assert first.parts.device is not second.parts.device
        assert fleet.names == ("cpu#0", "cpu#1")
        assert [one._options.shared_by for one in fleet.members] == [2, 2]
        halves = [one.plan.spec.tier("dram").capacity_bytes for one in fleet.members]
    with Coterie.open(composition) as one:
        assert max(halves) < 0.6 * one.plan.spec.tier("dram").capacity_bytes


@pytest.mark.parametrize(
    ("devices", "threads", "said"),
    [
        (("cpu", "modelled:sn40l-node"), None, "different kinds"),
        (("cuda", "cuda:0"), None, "given 2 times"),
        (("cpu", "cpu", "cpu"), 2, "fewer than the 3 devices"),
        (("cpu", "gpu"), None, "is not a device"),
    ],
)
def test_devices_that_do_not_go_together(composition: Path, devices: tuple[str, ...], threads: int | None, said: str):
    with pytest.raises(UsageError, match=said):
        Fleet.open(composition, Options(device=devices[0], beside=devices[1:], threads=threads))
    with pytest.raises(UsageError, match="2 devices are given"):
        Coterie.open(composition, TWO)


def test_closing_tells_everybody(composition: Path) -> None:
    fleet = Fleet.open(composition, TWO)
    asked = Query(Query.text("go on").messages, "ada", max_tokens=100, ignore_end=True)
    ends: list[object] = []

    def ask() -> None:
        try:
            ends.append(fleet.ask(asked))
        except ClosedError as error:
            ends.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    fleet.close()
    for thread in threads:
        thread.join(60)
    assert len(ends) == 4
    with pytest.raises(ClosedError):
        fleet.submit(asked)
    fleet.close()


def test_cancelled_and_abandoned_ones_end_once(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        long = Query(Query.text("on and on").messages, "bob", max_tokens=100, ignore_end=True)
        ids = [fleet.submit(long) for _ in range(6)]
        for request_id in ids[:3]:
            fleet.cancel(request_id)
        fleet.abandon(ids[3:])
        last = dict[str, str]()
        while not fleet.idle:
            for chunk in fleet.step():
                assert chunk.request_id in ids[:3]
                if chunk.answer is not None:
                    last[chunk.request_id] = chunk.answer.finish_reason
        assert last.keys() == set(ids[:3])
        first = next(iter(fleet.stream(long)))
        assert not first.last
        assert fleet.ask(long).finish_reason == "length"
        assert fleet._board.placing.unfinished == [Counter(), Counter()]


def test_too_many_wait_on_all_devices_together(composition: Path) -> None:
    with Fleet.open(composition, Options(device="cpu", beside=("cpu",), max_waiting=3)) as fleet:
        long = Query(Query.text("on").messages, "bob", max_tokens=60, ignore_end=True)
        with fleet._board.lock:  # so that no chunk comes between
            for _ in range(3):
                fleet.submit(long)
            with pytest.raises(CrowdedError):
                fleet.submit(long)
            assert fleet.places() == 0
        while not fleet.idle:
            fleet.step()
        assert fleet.status().metrics.refused == 1


def test_experts_come_go_and_stay(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        fleet.load("ada")
        fleet.load("bob")
        assert set(fleet.resident()) == {"ada", "bob"}
        fleet.pin("ada")
        status = fleet.status()
        assert (status.expert("ada").pinned, status.expert("ada").state) == (True, "resident")
        assert [one.expert("ada").pinned for one in status.devices.values()].count(True) == 1
        assert status.to_dict()["devices"].keys() == {"cpu#0", "cpu#1"}
        fleet.unpin("ada")
        fleet.unload("ada")
        assert set(fleet.resident()) == {"bob"}
        while not fleet.quiet:
            fleet.step()
        assert fleet.release_idle() > 0
        assert fleet.resident() == ()
        assert fleet.rescan().to_dict()["kept"] == {}


def test_over_http(composition: Path) -> None:
    def ask(url: str, text: str) -> str:
        body = {"model": "four", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 5}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        return str(answer["choices"][0]["message"]["content"])

    with Coterie.open(composition) as one:
        expected = [
            one.ask(Query(Query.text(text).messages, sampling=PartialSampling(temperature=0.0), max_tokens=5)).text
            for text in TEXTS[:6]
        ]
    with served(Fleet.open(composition, TWO)) as url:
        assert [ask(url, text) for text in TEXTS[:6]] == expected
        status = httpx.get(f"{url}/v1/status").json()
        assert status["devices"].keys() == {"cpu#0", "cpu#1"}

        def submitted() -> int:
            devices = httpx.get(f"{url}/v1/status").json()["devices"].values()
            return sum(one["metrics"]["submitted"] for one in devices)

        until(lambda: submitted() == 6)  # a status may be the last known one
        text = httpx.get(f"{url}/metrics").text
        assert 'coterie_requests_submitted_total{on="cpu#0"}' in text
        assert 'coterie_device_answers{on="cpu#1"} 1.0' in text
        assert httpx.post(f"{url}/v1/models/cyd/load", params={"wait": "true"}).json()["coterie"]["state"] == "resident"
        with httpx.stream("GET", f"{url}/v1/events") as events:
            lines = events.iter_lines()
            assert next(lines).startswith("id:")


def test_on_two_gpus_that_are_none(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a driver of its own, by its number; kernels are the CPU's, so answers are one GPU's, token for token."""
    pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")
    from tests.device.lazy_gpu import LazyDriver  # noqa: PLC0415
    from tests.device.native_kernels import NativeKernels  # noqa: PLC0415

    from coterie.devices.cuda import device as device_file  # noqa: PLC0415
    from coterie.devices.cuda import gpu  # noqa: PLC0415

    drivers: dict[int, LazyDriver] = {}

    def opened(index: int = 0) -> LazyDriver:
        return drivers.setdefault(index, LazyDriver(total_bytes=2**30, settle_s=2e-4))

    monkeypatch.setattr(gpu, "open_driver", opened)
    monkeypatch.setattr(device_file, "TritonKernels", lambda tiles: NativeKernels())
    with Coterie.open(composition, Options(device="cuda:2")) as one:
        expected = [(a.token_ids, a.expert) for a in one.ask_all(queries())]
    with Fleet.open(composition, Options(device="cuda:0", beside=("cuda:1",))) as fleet:
        assert [(a.token_ids, a.expert) for a in fleet.ask_all(queries())] == expected
        assert fleet.names == ("cuda:0", "cuda:1")
        assert [one.parts.plan.spec.name for one in fleet.members] == [drivers[0].facts.name] * 2
        assert min(one.parts.engine.metrics.submitted for one in fleet.members) > 0
    assert drivers.keys() == {0, 1, 2}


def test_a_query_that_a_model_routes_goes_on_where_its_expert_costs_least(tmp_path: Path) -> None:
    """The router's model is asked on one device, and another one may answer; tokens are those of one device."""
    asked = routed(12)
    path = write(tmp_path)
    with Coterie.open(path) as one:
        expected = [(a.token_ids, a.expert) for a in one.ask_all(asked)]
    with Fleet.open(path, TWO) as fleet:
        assert [(a.token_ids, a.expert) for a in fleet.ask_all(asked)] == expected
        assert fleet.idle
        assert fleet._board.placing.unfinished == [Counter(), Counter()]
        status = fleet.status()
        assert status.running == status.waiting == 0


def test_who_was_unloaded_is_placed_and_pinned_as_one_that_is_nowhere(composition: Path) -> None:
    """Also where no step has followed: a later load spreads, and does not go where it was."""
    with Fleet.open(composition, TWO) as fleet:
        fleet.load("ada")
        (first,) = [member for member in fleet._members if "ada" in member.snapshot.residents]
        fleet.unload("ada")
        assert not any("ada" in member.snapshot.residents for member in fleet._members)
        fleet.load("ada")
        assert "ada" not in first.snapshot.residents

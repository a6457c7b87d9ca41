"""A device of several whose steps fail and do not raise: what it fails is answered elsewhere, and it is asked last.

Faults are planted in one device's steps, and taken out again. None of these tests says how long anything takes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.system.fleets import NAMES, TWO, following, held, queries, routed
from tests.system.serving import served, until
from tests.system.test_fleet_breaks import break_at
from tests.system.test_llm_router import write

from coterie.api import Chunk, Coterie, Fleet, Query
from coterie.cli.options import out
from coterie.cli.ps import ask, show
from coterie.core.errors import CoterieError, CrowdedError, DeviceError, TransferError
from coterie.core.sampling import PartialSampling
from coterie.engine.health import FAILURES, FIRST_WAIT

ONE = Query(Query.text("go on").messages, "ada", PartialSampling(temperature=0.0), max_tokens=4, ignore_end=True)


def fail_steps(coterie: Coterie, whose: Collection[str] = NAMES, after: int = 0) -> Callable[[], None]:
    """Let each step of these experts fail on a device, `after` so many, as one does whose kernels cannot run; returns
    what mends it.
    """
    runner, device = coterie.parts.engine._runner, coterie.parts.device
    run, failure, failed, whole = runner.run, device.failure, set[int](), list[int]()

    def runs(experts: Any, *others: Any) -> Any:
        event = run(experts, *others)
        if {expert.expert_id for expert in experts} & set(whose):
            (whole.append if len(whole) < after else failed.add)(event.event_id)
        return event

    def fails(event: Any) -> Exception | None:
        found = failure(event)  # which waits for it
        return RuntimeError("an illegal memory access") if event.event_id in failed else found

    runner.run, device.failure = runs, fails  # type: ignore[method-assign]

    def mend() -> None:
        runner.run, device.failure = run, failure  # type: ignore[method-assign]

    return mend


def failed_on(coterie: Coterie) -> int:
    return coterie.parts.engine.metrics.finished.get("error", 0)


def failures_of(fleet: Fleet, number: int) -> int:
    return fleet._board.avoiding._health[fleet._members[number]].failures


@pytest.mark.parametrize("which", [0, 1])
def test_a_device_that_fails_all_is_no_black_hole(composition: Path, which: int) -> None:
    """Asked one after the other, it has never anything to do. Everybody gets the answer of a sound device."""
    with Coterie.open(composition) as one:
        expected = [(a.token_ids, a.text, a.expert) for a in one.ask_all(queries())]
    told: list[tuple[str, str]] = []
    with Fleet.open(composition, TWO) as fleet:
        fleet.on_avoid(lambda name, error: told.append((name, str(error))))
        bad = fleet.members[which]
        bad.load("ada")  # so that it is asked first, whichever it is
        fleet._members[which].snapshot = fleet._members[which]._take_snapshot()
        fail_steps(bad)
        answers = [fleet.ask(query) for query in queries()]
        assert [(a.token_ids, a.text, a.expert) for a in answers] == expected
        ((name, error),) = told
        assert name == f"cpu#{which}"
        assert "an illegal memory access" in error
        assert FAILURES <= failed_on(bad) <= FAILURES + len(answers) // FIRST_WAIT  # a trial
        assert fleet.avoided.keys() == fleet.status().avoided.keys() == {name}
        assert not fleet.broken
        assert fleet._board.placing.unfinished == [Counter(), Counter()]
        for coterie in fleet.members:
            coterie.parts.engine.check_integrity()


def test_many_at_once_are_answered_too(composition: Path) -> None:
    with Coterie.open(composition) as one:
        expected = [(a.token_ids, a.text) for a in one.ask_all(queries())]
    with Fleet.open(composition, TWO) as fleet:
        fail_steps(fleet.members[0])
        assert [(a.token_ids, a.text) for a in fleet.ask_all(queries())] == expected


def test_a_step_that_fails_many_requests_is_one_failure(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        bad = fleet.members[0]
        mend, step = fail_steps(bad), bad.step

        def fails_once(within_s: float | None = None) -> list[Chunk]:
            chunks = step(within_s)
            if chunks:
                mend()
            return chunks

        bad.step = fails_once  # type: ignore[method-assign]
        with held(fleet):
            ids = [fleet.submit(ONE) for _ in range(2 * FAILURES)]
        ends = [chunk for _ in iter(lambda: fleet.idle, True) for chunk in fleet.step() if chunk.last]
        assert sorted(end.request_id for end in ends) == sorted(ids)
        assert all(end.answer is not None for end in ends)
        assert failed_on(bad) >= FAILURES
        assert (failures_of(fleet, 0), fleet.avoided) == (1, {})


def test_who_waits_no_more_takes_nobody_s_place(composition: Path) -> None:
    """Where the device is in a long step, and so has not heard yet that they are cancelled."""
    with Fleet.open(composition, replace(TWO, max_waiting=2)) as fleet:
        with held(fleet):
            for request_id in [fleet.submit(ONE) for _ in range(2)]:
                fleet.cancel(request_id)
            ids = [fleet.submit(ONE) for _ in range(2)]
            with pytest.raises(CrowdedError):
                fleet.submit(ONE)
        answered = [chunk for _ in iter(lambda: fleet.idle, True) for chunk in fleet.step() if chunk.token_ids]
        assert {chunk.request_id for chunk in answered} == set(ids)


def test_who_is_cancelled_before_the_second_device_answers_ends_once(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        fail_steps(fleet.members[0])
        with held(fleet, [1]):
            request_id = fleet.submit(ONE)
            until(lambda: fleet._board.flights[request_id].retried)
            fleet.cancel(request_id)
        (end,) = [chunk for _ in iter(lambda: fleet.idle, True) for chunk in fleet.step() if chunk.last]
        assert end.answer is not None
        assert end.answer.finish_reason == "cancelled"
        assert failures_of(fleet, 0) == 0  # nobody has answered it


def test_events_say_who_goes_on_with_what_failed(composition: Path) -> None:
    body = {"model": "ada", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    fleet = Fleet.open(composition, TWO)
    with served(fleet) as url:
        fail_steps(fleet.members[0])
        with following(url) as events:
            assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
            told = [next(events) for _ in range(2)]
            while (told[-1]["event"], told[-1].get("reason")) not in (("ended", "length"), ("ended", "stop")):
                told.append(next(events))
    ours = [(one["event"], one["on"]) for one in told if "request" in one]
    moves = [number for number, (event, _) in enumerate(ours) if event == "moved"]
    assert len({one["request"] for one in told if "request" in one}) == 1
    (move,) = moves
    assert [on for _, on in ours] == ["cpu#0"] * move + ["cpu#1"] * (len(ours) - move)
    assert [event for event, _ in ours].count("ended") == 2
    assert ours[move - 1][0] == "ended"
    assert next(one for one in told if one["event"] == "moved")["from"] == "cpu#0"


def test_it_comes_back_once_it_answers(composition: Path) -> None:
    told: list[CoterieError | None] = []
    with Fleet.open(composition, TWO) as fleet:
        fleet.on_avoid(lambda _, error: told.append(error))
        mend = fail_steps(fleet.members[0])
        for _ in range(2 * FAILURES):
            fleet.ask(ONE)
        assert fleet.avoided.keys() == {"cpu#0"}
        before = failed_on(fleet.members[0])
        mend()
        with held(fleet, [1]):  # the other one gets a line, so that this one is worth a trial
            ids = [fleet.submit(replace(ONE, model=name)) for name in NAMES for _ in range(FIRST_WAIT)]
        ended = Counter[str]()
        while not fleet.idle:
            ended.update([chunk.request_id for chunk in fleet.step() if chunk.answer is not None])
        assert ended == Counter(ids)
        assert failed_on(fleet.members[0]) == before
        assert fleet.avoided == {}
        assert [error is None for error in told] == [False, True]


def test_its_trial_comes_though_others_would_answer_sooner(composition: Path) -> None:
    """One after the other, of an expert that the sound device has: nothing but the trial leads to the first one."""
    with Fleet.open(composition, TWO) as fleet:
        mend = fail_steps(fleet.members[0])
        for _ in range(FAILURES):
            fleet.ask(ONE)
        assert fleet.avoided.keys() == {"cpu#0"}
        mend()
        fleet.unload("ada")
        fleet._members[1].call(lambda coterie: coterie.load_soon("ada", lambda _: None))
        for _ in range(FIRST_WAIT):
            assert fleet.ask(ONE).finish_reason == "length"
        assert fleet.avoided.keys() == {"cpu#0"}
        assert fleet.ask(ONE).finish_reason == "length"
        assert fleet.avoided == {}
        assert fleet.members[0].parts.engine.metrics.finished["length"] == 1


def test_a_load_is_no_trial(composition: Path) -> None:
    """Only a request says whether the device answers again: the next one is the trial that was due."""
    with Fleet.open(composition, TWO) as fleet:
        fail_steps(fleet.members[0], {"ada"})
        for _ in range(FAILURES + FIRST_WAIT):
            fleet.ask(ONE)
        health = fleet._board.avoiding._health[fleet._members[0]]
        assert (health.failing, health.waits) == (True, 0)
        with held(fleet, [1]):  # a line, so that the first one would be asked
            for _ in range(8):
                fleet._board.placing.count(fleet._members[1], "bob", 1)
        fleet.load("dan")
        assert "dan" in fleet._members[0].snapshot.residents
        assert health.waits == 0
        fleet._board.placing.count(fleet._members[1], "bob", -8)


def test_who_is_cancelled_on_it_does_not_clear_it(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        fail_steps(fleet.members[0])
        for _ in range(FAILURES):
            fleet.ask(ONE)
        assert fleet.avoided.keys() == {"cpu#0"}
        break_at(fleet.members[1])
        with pytest.raises(DeviceError):  # by the second one, and then by the first
            fleet.ask(ONE)
        with held(fleet, [0]):
            request_id = fleet.submit(ONE)
            fleet.cancel(request_id)
        (end,) = [chunk for _ in iter(lambda: fleet.idle, True) for chunk in fleet.step() if chunk.last]
        assert end.answer is not None
        assert end.answer.finish_reason == "cancelled"
        assert fleet.avoided.keys() == {"cpu#0"}


def test_a_request_that_fails_everywhere_is_nobodys_fault(composition: Path) -> None:
    """Its error is that of the second device, and there is no third try; both go on as before."""
    with Fleet.open(composition, TWO) as fleet:
        for coterie in fleet.members:
            fail_steps(coterie, {"ada"})
        for _ in range(2 * FAILURES):
            with pytest.raises(DeviceError, match="an illegal memory access"):
                fleet.ask(ONE)
        assert (fleet.avoided, [failures_of(fleet, number) for number in (0, 1)]) == ({}, [0, 0])
        assert [failed_on(coterie) for coterie in fleet.members] == [2 * FAILURES] * 2
        assert fleet.ask(replace(ONE, model="bob")).finish_reason == "length"


def test_a_damaged_file_is_no_devices_fault(folder: Path, tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        shutil.copytree(folder / name, tmp_path / name)
    with Fleet.open(tmp_path, TWO) as fleet:
        weights = tmp_path / "ada" / "model.safetensors"
        fleet.load("ada")
        holder = next(member.number for member in fleet._members if "ada" in member.snapshot.residents)
        weights.write_bytes(weights.read_bytes()[:-2])
        with held(fleet, [holder]):  # a line, so that the other one would bring it in
            ids = [fleet.submit(ONE) for _ in range(12)]
        ends = dict[str, object]()
        while not fleet.idle:
            for chunk in fleet.step():
                if chunk.last:
                    ends[chunk.request_id] = chunk.answer
        assert ends.keys() == set(ids)
        assert None not in ends.values()  # who has it answers
        assert fleet.members[1 - holder].parts.engine.metrics.failed_fetches > 0
        assert fleet.avoided == {}
        assert failures_of(fleet, 1 - holder) == 0
        fleet.unload("ada")
        with pytest.raises(TransferError, match="ada"):
            fleet.ask(ONE)


def test_what_has_begun_ends_with_the_error(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        for coterie in fleet.members:
            fail_steps(coterie, after=1)
        first, *_, last = fleet.stream(replace(ONE, max_tokens=60))
        assert not first.last
        assert isinstance(last.error, DeviceError)
        assert last.expert == "ada"


def test_a_query_that_a_model_routes_is_routed_by_a_sound_device(tmp_path: Path) -> None:
    asked = routed(8)
    path = write(tmp_path)
    with Coterie.open(path) as one:
        expected = [(a.token_ids, a.expert) for a in one.ask_all(asked)]
        everybody = tuple(one.models)
    with Fleet.open(path, TWO) as fleet:
        fail_steps(fleet.members[0], everybody)
        for _ in range(FAILURES):
            assert [(a.token_ids, a.expert) for a in fleet.ask_all(asked)] == expected
        assert fleet.avoided.keys() == {"cpu#0"}


def test_the_server_says_so(composition: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = {"model": "ada", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    fleet = Fleet.open(composition, TWO)
    with served(fleet) as url:
        fail_steps(fleet.members[0])
        answers = [httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60) for _ in range(2 * FAILURES)]
        assert {answer.status_code for answer in answers} == {200}
        assert httpx.get(f"{url}/health").json()["devices"] == {"cpu#0": "avoided", "cpu#1": "answers"}
        failed = f'coterie_requests_finished_total{{on="cpu#0",reason="error"}} {FAILURES}.0'
        until(lambda: failed in httpx.get(f"{url}/metrics").text)
        text = httpx.get(f"{url}/metrics").text
        assert 'coterie_device_avoided{on="cpu#0"} 1.0' in text
        assert 'coterie_device_avoided{on="cpu#1"} 0.0' in text
        status = ask(url)
        assert "an illegal memory access" in status["avoided"]["cpu#0"]
        with out.capture() as captured:
            out.print(show(status, url))
        assert "cpu#0 is asked last" in captured.get()
    (line,) = [one.getMessage() for one in caplog.records if "cpu#0" in one.getMessage()]
    assert "is avoided: [cpu#0] fails what others answer" in line
    assert "an illegal memory access" in line

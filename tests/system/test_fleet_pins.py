"""Pins of a device of several that breaks: another one has them, or it is said that none has."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.system.fleets import NAMES, TWO, following, held
from tests.system.serving import served, until
from tests.system.test_fleet_breaks import break_at

from coterie.api import Fleet, Options, Query
from coterie.api.member import Member
from coterie.api.placing import Placing
from coterie.cli.options import out
from coterie.cli.ps import ask, show
from coterie.core.errors import DeviceError

ROOM_FOR_TWO = Options(device="cpu", beside=("cpu",), near_bytes=200 * 1024)
THREE = Options(device="cpu", beside=("cpu", "cpu"))


def broken(fleet: Fleet, which: int) -> None:
    """Break a device, while it does nothing else."""
    member = fleet._members[which]
    break_at(member.coterie)
    member.post(lambda coterie: coterie.load_soon("dan", lambda _: None))  # a step to take
    until(lambda: member.broken is not None)


def pins(fleet: Fleet) -> dict[str, set[str]]:
    """What each device that answers has pinned."""
    return {
        name: {expert.name for expert in status.experts if expert.pinned}
        for name, status in fleet.status().devices.items()
    }


def load(member: Member, name: str) -> None:
    member.call(lambda coterie: coterie.load_soon(name, lambda _: None))
    until(lambda: name in member.call(lambda coterie: coterie.resident()))
    until(lambda: name in member.snapshot.residents)


@pytest.mark.parametrize("which", [0, 1])
def test_what_only_it_had_pinned_is_pinned_and_brought_in_elsewhere(composition: Path, which: int) -> None:
    told: list[tuple[str, str, bool]] = []
    with Fleet.open(composition, TWO) as fleet:
        fleet.on_repin(lambda name, where, error: told.append((name, where, error is None)))
        first, other = fleet._members[which], fleet._members[1 - which]
        load(first, "ada")
        fleet.pin("ada")
        first.call(lambda coterie: coterie.pin("bob"))  # which is not in
        assert pins(fleet) == {first.name: {"ada", "bob"}, other.name: set()}
        broken(fleet, which)
        until(lambda: len(told) == 2)
        assert sorted(told) == [("ada", other.name, True), ("bob", other.name, True)]
        assert pins(fleet) == {other.name: {"ada", "bob"}}
        assert fleet.status().unpinned == {}
        until(lambda: "ada" in other.call(lambda coterie: coterie.resident()))
        assert "bob" not in other.snapshot.residents
        fleet.unpin("ada")
        assert pins(fleet) == {other.name: {"bob"}}


def test_what_another_one_has_pinned_too_is_left_as_it_is(composition: Path) -> None:
    told: list[str] = []
    with Fleet.open(composition, THREE) as fleet:
        fleet.on_repin(lambda name, *_: told.append(name))
        for member in fleet._members[:2]:
            load(member, "ada")
        fleet.pin("ada")
        broken(fleet, 0)
        assert fleet.ask(Query(Query.text("x").messages, "bob", max_tokens=2)).expert == "bob"
        assert pins(fleet) == {"cpu#1": {"ada"}, "cpu#2": set()}
        assert told == []


def test_where_one_has_no_room_for_a_pin_the_next_one_gets_it(composition: Path) -> None:
    """Room for two of four on each, so for one that is pinned."""
    told: list[tuple[str, str]] = []
    with Fleet.open(composition, Options(device="cpu", beside=("cpu", "cpu"), near_bytes=200 * 1024)) as fleet:
        fleet.on_repin(lambda name, where, _: told.append((name, where)))
        first, second, _ = fleet._members
        first.call(lambda coterie: coterie.pin("ada"))
        second.call(lambda coterie: coterie.pin("bob"))
        with held(fleet, [2]):
            load(second, "ada")  # so that it costs least there
        broken(fleet, 0)
        until(lambda: len(told) == 1)
        assert told == [("ada", "cpu#2")]
        assert pins(fleet) == {"cpu#1": {"bob"}, "cpu#2": {"ada"}}


def test_where_none_has_room_it_is_said(composition: Path, caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet.open(composition, ROOM_FOR_TWO)
    with served(fleet) as url:
        for member, name in zip(fleet._members, NAMES, strict=False):
            member.call(lambda coterie, name=name: coterie.pin(name))
        with following(url) as events:
            assert next(events)["unpinned"] == {}
            broken(fleet, 0)
            assert next(event for event in events if event["event"] == "stopped")["on"] == "cpu#0"
        until(lambda: "ada" in ask(url)["unpinned"])
        status = ask(url)
        assert "was pinned on cpu#0, which has stopped, and no other device takes it" in status["unpinned"]["ada"]
        with out.capture() as captured:
            out.print(show(status, url))
        assert "ada is not pinned any more" in captured.get()
        assert [one["name"] for one in status["experts"] if one["pinned"]] == ["bob"]
        httpx.post(f"{url}/v1/models/bob/unpin", timeout=60).raise_for_status()
        httpx.post(f"{url}/v1/models/ada/pin", timeout=60).raise_for_status()
        status = ask(url)
        assert status["unpinned"] == {}
        assert [one["name"] for one in status["experts"] if one["pinned"]] == ["ada"]
    assert [one.levelname for one in caplog.records if "a pin is lost: [ada]" in one.getMessage()] == ["ERROR"]


def test_where_nobody_is_left_nothing_is_pinned(composition: Path) -> None:
    told: list[str] = []
    with Fleet.open(composition, TWO) as fleet:
        fleet.on_repin(lambda name, *_: told.append(name))
        fleet._members[1].call(lambda coterie: coterie.pin("ada"))
        broken(fleet, 0)
        broken(fleet, 1)
        with pytest.raises(DeviceError, match=r"cpu#0"):
            fleet.pin("ada")
        assert told == []


def test_one_that_breaks_while_pins_go_to_it_keeps_nobody_waiting(
    composition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked for a place, and answers nothing any more by then: whoever waits for the first one is told so."""
    told: list[str] = []
    with Fleet.open(composition, TWO) as fleet:
        first, second = fleet._members
        first.call(lambda coterie: coterie.pin("ada"))
        fleet.on_break(lambda name, error, cause: told.append(name))

        def breaks(self: Placing, *asked: object, **others: object) -> Member:
            second.broken = DeviceError(second.name, "has stopped too", "restart the server")
            raise second.broken

        monkeypatch.setattr(Placing, "cheapest", breaks)
        broken(fleet, 0)
        with pytest.raises(DeviceError, match=r"cpu#0.*in the middle of a step"):
            first.post(lambda _: None).result(60)
        until(lambda: told == ["cpu#0"])
        assert isinstance(fleet._board.ended, DeviceError)

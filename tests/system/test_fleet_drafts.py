"""Draft experts on several devices: answers are those without, each device guesses for what it answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.system.fleets import held
from tests.system.test_drafts import GUESSING, _priced, office, queries
from tests.system.test_fleet_breaks import break_at
from tests.system.test_fleet_failing import fail_steps

from coterie.api import Coterie, Fleet, Options
from coterie.api.types import Chunk
from coterie.core.errors import ConflictError
from coterie.memory.slab import round_up

__all__ = ["_priced", "office"]  # fixtures
TWO = Options(device="cpu", beside=("cpu",), policy=GUESSING, threads=2)


def plain(office: Path) -> list[object]:
    """What large says without anybody's guesses."""
    with Coterie.open(office, Options(policy=GUESSING, threads=1)) as one:
        return [(answer.token_ids, answer.text, answer.logprobs) for answer in one.ask_all(queries())]


def asked(fleet: Fleet) -> list[object]:
    """The same of several devices, which have their part of the queries at once."""
    ends, order = dict[str, Chunk](), list[str]()
    with held(fleet):
        order += [fleet.submit(query) for query in queries()]
    while not fleet.idle:
        ends |= {chunk.request_id: chunk for chunk in fleet.step() if chunk.last}
    answers = [ends[request_id].answer for request_id in order]
    return [(answer.token_ids, answer.text, answer.logprobs) for answer in answers if answer is not None]


def drafted(fleet: Fleet) -> list[int]:
    return [one.parts.engine.metrics.drafted_tokens for one in fleet.members]


@pytest.mark.parametrize("draft", ["small", "same"])
def test_answers_are_those_without_and_each_device_guesses(office: Path, draft: str) -> None:
    expected = plain(office)
    with Fleet.open(office, replace(TWO, draft=draft)) as fleet:
        fleet.load(draft)
        assert [draft in member.snapshot.residents for member in fleet._members] == [True, True]
        for member in fleet._members:  # so that both have their part of the queries
            member.call(lambda coterie: coterie.load_soon("large", lambda _: None))
        while asked(fleet) != expected or min(drafted(fleet)) == 0:
            assert min(drafted(fleet)) == 0, "tokens are others"
        for one in fleet.members:
            one.parts.engine.check_integrity()
            assert one.parts.kv.free_blocks == one.parts.kv.num_blocks
        status = fleet.status()
        assert status.metrics.drafted_tokens == sum(drafted(fleet))
        assert status.lacks == ()


def test_who_guesses_is_loaded_and_pinned_on_all_devices(office: Path) -> None:
    """By whatever name it is: it is wanted wherever those are for whom it guesses."""
    with Fleet.open(office, replace(TWO, draft="same")) as fleet:
        fleet.pin("same")
        fleet.load("same")
        fleet.load("small")
        fleet.pin("small")
        devices = fleet.status().devices.values()
        assert [one.expert("same").pinned for one in devices] == [True, True]
        assert [one.expert("same").state for one in devices] == ["resident", "resident"]
        assert Counter(one.expert("small").pinned for one in devices) == Counter([True, False])
        fleet.unpin("same")
        fleet.unload("same")
        assert [one.expert("same").state for one in fleet.status().devices.values()] == ["absent", "absent"]


def test_a_draft_that_one_device_has_no_room_for_is_told_of(office: Path) -> None:
    sizes = {}
    with Coterie.open(office) as one:
        sizes = {name: round_up(model.layout.size_bytes) for name, model in one.models.items()}
    with Fleet.open(office, replace(TWO, draft="same", near_bytes=sizes["large"] + sizes["same"] - 4096)) as fleet:
        first, second = fleet.members
        with pytest.raises(ConflictError, match="pin same"):
            fleet.pin("same")  # large would have no room beside it
        fleet.ask(queries()[0])
        (lack,) = fleet.status().lacks
        assert "[large: draft] same, beside whom dram holds, needs" in lack
        assert [len(one.lacks) for one in fleet.status().devices.values()] == [1, 0]
        assert not second.parts.engine.metrics.drafted_tokens + first.parts.engine.metrics.drafted_tokens


def test_a_device_that_breaks_or_fails_while_it_guesses(office: Path) -> None:
    expected = plain(office)
    for plant in (lambda coterie: break_at(coterie, bool), lambda coterie: fail_steps(coterie, {"large"})):
        with Fleet.open(office, replace(TWO, draft="same")) as fleet:
            fleet.load("same")
            plant(fleet.members[0])
            assert asked(fleet) == expected
            assert drafted(fleet)[1] > 0
            assert fleet._board.placing.unfinished == [Counter(), Counter()]

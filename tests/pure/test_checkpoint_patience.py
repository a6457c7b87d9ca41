"""A checkpoint whose disk does not answer while it is opened is named, and those that are quick are not."""

from __future__ import annotations

import logging
import threading

import pytest

from coterie.checkpoint import patience
from coterie.checkpoint.patience import Patience
from coterie.composition.composition import load_composition
from coterie.core.errors import CheckpointError, UsageError
from coterie.engine import experts
from coterie.engine.experts import open_servable

LONG_S = 60.0  # a test that waits for so long has failed


@pytest.fixture
def folders(tmp_path):
    names = ("m0", "m1", "m2")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return {name: tmp_path / name for name in names}


def test_one_that_is_still_being_opened_is_told_of(folders, monkeypatch, caplog):
    passing = Patience(folders)
    names = ["", "m0", "m1", "m1", "m1", "m2", "no bytes", "no bytes", None]

    class Looks:
        """At each look another one may be under way."""

        def wait(self, _seconds: float) -> bool:
            name = names.pop(0)
            if name and name != passing._name:
                passing.at(name)
            return name is None

    monkeypatch.setattr(passing, "_ended", Looks())
    passing._tell()
    assert [record.getMessage() for record in caplog.records] == [
        f"opening m1 ({folders['m1']}), 2 of 3, takes long: its disk has not answered for {seconds} s"
        for seconds in (5, 10)
    ]


def test_a_folder_whose_disk_hangs_is_told_of_and_opened_in_the_end(folders, monkeypatch, caplog):
    """Here none can be opened, and the second one not for long."""
    told, opened = threading.Event(), []
    caplog.handler.addFilter(lambda record: told.set() or True)

    def slow(expert, checkpoint, _opened):
        assert expert.name != "m1" or told.wait(LONG_S)
        opened.append(expert.name)
        raise CheckpointError(expert.name, "is none", "")

    monkeypatch.setattr(experts, "open_expert", slow)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.01)
    composition = load_composition(folders["m0"].parent)
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError):
        open_servable(composition)
    assert f"opening m1 ({folders['m1']}), 2 of 3, takes long" in caplog.text
    assert opened == ["m0", "m1", "m2"]

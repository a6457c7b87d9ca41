"""A folder of which some experts cannot be opened: the others are served, and what is left out is told, with why."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient
from tests.system.commands import refused, run
from tests.system.tiny import write_adapter, write_expert

from coterie.api import Coterie, Query
from coterie.cli.serve import _say
from coterie.core.errors import CheckpointError, NotFoundError
from coterie.server.app import make_app

REASONS = {
    "cut": "the file is truncated",
    "t5": "'t5'",
    "mute": "tokenizer.json",
    "no-base": "is 'some/base'",
    "not-its-base": "says 3",
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two good experts, and one of each kind of bad one."""
    root = tmp_path / "mixed"
    for seed, name in enumerate(("ada", "bob", "cut", "t5", "mute")):
        write_expert(root / name, seed)
    cut = root / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    config = json.loads((root / "t5" / "config.json").read_text())
    (root / "t5" / "config.json").write_text(json.dumps({**config, "model_type": "t5", "architectures": ["T5"]}))
    (root / "mute" / "tokenizer.json").unlink()
    write_adapter(root / "no-base", ("q_proj",))
    other = write_adapter(root / "not-its-base", ("q_proj",)) / "adapter_config.json"
    settings = json.loads(other.read_text())
    other.write_text(json.dumps({**settings, "base_model_name_or_path": str(root / "ada"), "r": 3}))
    return root


def test_the_others_are_served(mixed: Path) -> None:
    answered = run("run", mixed, "--expert", "bob", "--max-tokens", "3", "--json", "hello")
    assert answered.exit_code == 0
    assert json.loads(answered.stdout)["expert"] == "bob"
    told = answered.stderr.splitlines()
    assert len(told) == len(REASONS)
    for name, reason in REASONS.items():
        assert any(line.startswith(f"coterie: {name} is left out: [") and reason in line for line in told), told
    with Coterie.open(mixed) as coterie, TestClient(make_app(coterie)) as client:
        assert coterie.composition.names == ("ada", "bob")
        assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["mixed", "ada", "bob"]
        asked = {"model": "cut", "messages": [{"role": "user", "content": "hello"}]}
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 404
        assert "the expert cut is left out: " in answer.json()["error"]["message"]
        with pytest.raises(NotFoundError, match=r"the expert cut is left out: .* is truncated"):
            coterie.load("cut")


COMPUTED = ("--requests", "3", "--rate", "1", "--prompt", "fixed:8", "--tokens", "fixed:4")


@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "--machine", "sn40l-node", *COMPUTED),
        ("plan", "--machine", "sn40l-node", "--rate", "1", "--prompt", "8", "--tokens", "4", "--slo", "ttft=1s"),
        ("compile",),
        (
            "bench",
            "serve",
            "--in-flight",
            "1",
            "--requests",
            "2",
            "--rounds",
            "1",
            "--prompt",
            "8",
            "--max-tokens",
            "2",
        ),
    ],
    ids=lambda command: command[0],
)
def test_who_computes_for_the_others_tells_too(
    mixed: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only prices models needs no tokenizer. No kernel is compiled here."""
    ahead = SimpleNamespace(kept=lambda wanted: wanted, folder="", capability=(9, 0))
    monkeypatch.setattr("coterie.cli.compile.ahead_of", lambda *named: ahead)
    monkeypatch.setattr("coterie.cli.compile._wanted", lambda models, *limits: dict.fromkeys(models, True))
    where = 2 if command[0] == "bench" else 1
    answered = run(*command[:where], mixed, *command[where:])
    assert answered.exit_code == 0, answered.stderr
    for name in REASONS.keys() - (set() if command[0] == "bench" else {"mute"}):
        assert f"coterie: {name} is left out: [" in answered.stderr


def test_check_prints_the_rest_and_fails(mixed: Path) -> None:
    checked = run("check", mixed)
    assert checked.exit_code == 2
    assert "2 experts" in checked.stdout
    assert checked.stderr.count("is left out") == len(REASONS)
    report = json.loads(run("check", mixed, "--json").stdout)
    assert (report["experts"].keys(), report["left_out"].keys()) == ({"ada", "bob"}, REASONS.keys())


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Two small experts, and two that are several times as large."""
    root = tmp_path / "uneven"
    for seed, (name, inner) in enumerate((("ada", 48), ("big", 480), ("bob", 48), ("huge", 960))):
        write_expert(root / name, seed, intermediate_size=inner)
    return root


def test_who_has_no_room_is_left_out_of_a_folder(uneven: Path, tmp_path: Path) -> None:
    """The largest first, until the others fit; in a file, alone and as the only one left it is an error."""
    near = "200KiB"
    answered = run("run", uneven, "--near", near, "--expert", "bob", "--max-tokens", "3", "--json", "hello")
    assert answered.exit_code == 0
    told = answered.stderr.splitlines()
    assert [line.split(":")[1] for line in told] == [" huge is left out", " big is left out"]
    assert all(
        "[--near] the expert " in line and "but 200.00 KiB can be had; set --near to at least" in line for line in told
    )
    checked = run("check", uneven, "--near", near, "--json")
    assert checked.exit_code == 2
    report = json.loads(checked.stdout)
    assert (report["experts"].keys(), report["left_out"].keys()) == ({"ada", "bob"}, {"big", "huge"})
    asked = run("run", uneven, "--near", near, "--expert", "huge", "hello")
    assert asked.exit_code == 2
    assert "[uneven] the expert huge is left out: [--near] the expert" in asked.stderr.splitlines()[-1]
    refused(run("run", uneven, "--near", near, "--draft", "huge", "hello"), "the expert huge needs")
    refused(run("run", uneven, "--near", "4KiB", "hello"), "can be had")
    file = tmp_path / "office.toml"
    experts = (f'[[expert]]\nname = "{name}"\ncheckpoint = "{uneven}/{name}"\n' for name in ("ada", "huge"))
    file.write_text('name = "office"\n' + "".join(experts))
    refused(run("run", file, "--near", near, "--expert", "ada", "hello"), "the expert huge needs")


def test_who_is_named_must_open(mixed: Path, tmp_path: Path) -> None:
    """In a file, and alone."""
    file = tmp_path / "office.toml"
    file.write_text(
        f'name = "office"\n[[expert]]\nname = "ada"\ncheckpoint = "{mixed}/ada"\n'
        f'[[expert]]\nname = "cut"\ncheckpoint = "{mixed}/cut"\n'
    )
    for ref in (file, mixed / "cut"):
        refused(run("check", ref), "the file is truncated")
        with pytest.raises(CheckpointError, match="is truncated"):
            Coterie.open(ref)


def test_where_nothing_is_left(tmp_path: Path) -> None:
    for seed, name in enumerate(("ada", "bob")):
        (write_expert(tmp_path / name, seed) / "tokenizer.json").unlink()
    refused(run("run", tmp_path, "hello"), "nothing of 2 in it can be served; ada: [", "tokenizer.json")


def test_the_line_to_try_names_an_expert_where_there_is_no_router(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ref, model in ((mixed, "ada"), (mixed / "bob", "bob"), ("demo", "demo")):
        with Coterie.open(ref) as coterie:
            _say(coterie, ("127.0.0.1", 8000), (), ())
        assert f'"model": "{model}"' in capsys.readouterr().out


@pytest.mark.parametrize("place", range(1, 10))
def test_a_folder_that_goes_while_it_is_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Before any of the looks into it: what is opened is served, or it is left out, and the other one stays."""
    for seed, name in enumerate(("ada", "bob")):
        write_expert(tmp_path / name, seed)
    looks = 0

    def gone(what: Callable[..., object]) -> Callable[..., object]:
        def looked(path: object, *args: object, **more: object) -> object:
            nonlocal looks
            looks += str(tmp_path / "ada") in str(path)
            if looks == place:
                monkeypatch.undo()
                shutil.rmtree(tmp_path / "ada")
            return what(path, *args, **more)

        return looked

    for name in ("open", "scandir"):
        monkeypatch.setattr(os, name, gone(getattr(os, name)))
    monkeypatch.setattr(io, "open", gone(io.open))
    with Coterie.open(tmp_path) as coterie:
        assert coterie.ask(Query.text("hello", "bob")).token_ids
        assert {*coterie.composition.names, *coterie.composition.left_out} >= {"bob"}
    assert looks >= place

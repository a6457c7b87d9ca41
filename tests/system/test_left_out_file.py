"""A composition file of which some experts cannot be served: an error, or with --leave-out served without them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.system.commands import refused, run
from tests.system.tiny import write_adapter, write_expert

from coterie.api import Coterie, Options, Query
from coterie.cli.ps import show
from coterie.composition.composition import load_composition
from coterie.composition.router import Prompt
from coterie.composition.routers.llm import LlmRouter
from coterie.composition.routing import Routing
from coterie.core.errors import CompositionError, NotFoundError
from coterie.server.app import make_app

Write = Callable[..., Path]
KNN = 'kind = "knn"\nfallback = "ada"\nk = 1\n'
RULES = """
kind = "rules"
fallback = "ada"
rule = [{expert = "cut", keywords = ["sea"]}, {expert = "bob", keywords = ["noun"]}]
"""
ABOUT = {"ada": "good morning", "bob": "what is a noun", "cut": "how deep is the sea", "none": "zzz 17"}
SEA = Query.text(ABOUT["cut"])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A file of two good experts, one whose weights are cut, an adapter beside that one, and one without a folder."""
    for seed, name in enumerate(("ada", "bob", "cut")):
        write_expert(tmp_path / name, seed)
    weights = tmp_path / "cut" / "model.safetensors"
    shutil.copy(weights, tmp_path / "whole")
    weights.write_bytes(weights.read_bytes()[:-100])
    write_adapter(tmp_path / "beside", ("q_proj",))

    def written(router: str = KNN, more: str = "") -> Path:
        tables = [f'name = "office"\n[router]\n{router}']
        for name, text in ABOUT.items():
            examples = f'examples = ["{text}"]\n' if "knn" in router else ""
            tables.append(f'[[expert]]\nname = "{name}"\ncheckpoint = "{name}"\n{examples}')
            tables.append('draft = "cut"\naliases = ["latest"]\n' if name == "bob" else "")
        tables.append('[[expert]]\nname = "beside"\ncheckpoint = "beside"\nbase = "cut"\naliases = ["org/latest"]\n')
        (tmp_path / "office.toml").write_text("".join(tables) + more)
        return tmp_path / "office.toml"

    return written


LEFT_OUT = {"none": "there is no folder", "cut": "is truncated", "beside": "is truncated"}


@pytest.mark.parametrize("router", [KNN, RULES])
def test_the_others_are_served(write: Write, router: str) -> None:
    """Whom the router would have chosen, among those left out, the fallback stands for; nobody else takes his place."""
    path = write(router)
    with pytest.raises(CompositionError, match="there is no folder"):
        Coterie.open(path)
    with Coterie.open(path, leave_out=True) as coterie, TestClient(make_app(coterie)) as client:
        assert coterie.composition.names == ("ada", "bob")
        said = {name: str(why) for name, why in coterie.composition.left_out.items()}
        assert said.keys() == LEFT_OUT.keys()
        assert all(reason in said[name] for name, reason in LEFT_OUT.items())
        route = coterie.route(SEA)
        assert (route.expert, route.is_fallback) == ("ada", True)
        assert route.reason.startswith("cut is left out; ")
        assert coterie.route(Query.text(ABOUT["bob"])).expert == "bob"
        assert coterie.ask(SEA).expert == "ada"
        assert coterie.models["bob"].draft == ""
        with pytest.raises(NotFoundError, match=r"the expert none is left out: .* there is no folder"):
            coterie.route(Query.text("hi", "none"))
        for asked in (Query.text("hi", "org/latest"), Query.text("@org/latest: hi"), Query.text("@beside hi")):
            with pytest.raises(NotFoundError, match=r"the expert beside,?.* is left out: .* is truncated"):
                coterie.route(asked)
        assert coterie.route(Query.text("hi @beside")).expert == "ada"
        body = client.get("/v1/models").json()["data"]
        assert [row["id"] for row in body] == ["office", "ada", "bob", "latest"]
        assert body[0]["coterie"]["left_out"] == said
        for name in ("beside", "org/latest"):
            assert "left out: [" in client.get(f"/v1/models/{name}").json()["error"]["message"]
            assert "left out: [" in client.post(f"/v1/models/{name}/load").json()["error"]["message"]
        status = client.get("/v1/status").json()
        assert status["left_out"] == said
        notes = [str(line) for line in show(status, "http://x").renderables if "is left out" in str(line)]
        assert [note.split()[0] for note in notes] == list(said)


def test_commands_tell_what_is_left_out(write: Write) -> None:
    path = write()
    refused(run("check", path), "there is no folder")
    checked = run("check", path, "--leave-out")
    assert checked.exit_code == 2
    assert "2 experts" in checked.stdout
    assert json.loads(run("check", path, "--leave-out", "--json").stdout)["left_out"].keys() == LEFT_OUT.keys()
    lines = checked.stderr.splitlines()
    assert [line.split(":")[1] for line in lines[:3]] == [f" {name} is left out" for name in LEFT_OUT]
    assert lines[3:] == ["coterie: bob has no draft, as cut is left out"]


def test_a_fallback_must_be_there(write: Write) -> None:
    for name, reason in LEFT_OUT.items():
        path = write(KNN.replace("ada", name))
        with pytest.raises(CompositionError, match=rf"router.fallback\] fallback = '{name}' is left out: .*{reason}"):
            Coterie.open(path, leave_out=True)
    path = write(KNN, '[[expert]]\nname = "big"\nconfig = "llama-2-7b"\n')
    with Coterie.open(path, leave_out=True) as coterie:  # it has no weights, which only a modelled device does without
        assert "big" in coterie.composition.left_out
    with pytest.raises(CompositionError, match="'eve' is not an expert"):
        load_composition(write(KNN.replace("ada", "eve")), leave_out=True)


def test_names_are_given_once_among_those_left_out_too(write: Write) -> None:
    """Else what is asked of one that is missing would be another's."""
    more = '[[expert]]\nname = "{}"\ncheckpoint = "bob"\n{}'
    for name, keys, fact in (
        ("eve", 'aliases = ["none"]', "the alias 'none' is also the name of the expert none"),
        ("eve", 'aliases = ["org/latest"]', "the alias 'org/latest' is also an alias of beside"),
        ("none", "", "the name 'none' is already taken"),
    ):
        with pytest.raises(CompositionError, match=fact):
            load_composition(write(more=more.format(name, keys)), leave_out=True)


def test_who_has_no_room_is_left_out(write: Write, tmp_path: Path) -> None:
    write_expert(tmp_path / "big", 7, intermediate_size=960)
    more = '[[expert]]\nname = "big"\ncheckpoint = "big"\n'
    room = Options(near_bytes=200 << 10)
    with Coterie.open(write(more=more), room, leave_out=True) as coterie:
        assert coterie.composition.left_out.keys() == LEFT_OUT.keys() | {"big"}
    with pytest.raises(CompositionError, match="fallback = 'big' is left out"):
        Coterie.open(write(KNN.replace("ada", "big"), more), room, leave_out=True)


def test_a_rescan_brings_back_what_was_mended(write: Write, tmp_path: Path) -> None:
    path = write()
    with Coterie.open(path, leave_out=True) as coterie:
        shutil.copy(tmp_path / "whole", tmp_path / "cut" / "model.safetensors")
        found = coterie.rescan()
        assert (found.added, found.left_out.keys(), found.kept) == (("cut",), {"none", "beside"}, {})
        assert coterie.route(SEA).expert == "cut"
        assert found.renewed == ("bob",)  # it has its draft again
        assert (coterie.models["bob"].draft, coterie.parts.served["bob"].draft) == ("cut", "cut")
        again = coterie.rescan()
        assert (again.added, again.renewed) == ((), ())
        shutil.rmtree(tmp_path / "bob")  # who is served stays, under all names, until the file says otherwise
        assert coterie.rescan().removed == ()
        assert coterie.composition.expert("latest").name == "bob"
        path.write_text(path.read_text().replace('"none"', '"new"').replace(KNN, KNN.replace("ada", "new")))
        assert "new of the file cannot be served" in str(coterie.rescan().kept["(router)"])


def test_a_model_that_is_asked_where_to_is_asked_about_those_who_are_there(write: Write, tmp_path: Path) -> None:
    """At start and after each rescan alike."""

    def listed(coterie: Coterie) -> list[str]:
        assert isinstance(coterie.routing.router, LlmRouter)
        return coterie.routing.router.instructions.split("\n\n")[0].splitlines()[1:]

    path = write('kind = "llm"\nfallback = "ada"\ncheckpoint = "ada"\n')
    with Coterie.open(path, leave_out=True) as coterie:
        assert listed(coterie) == ["ada", "bob"]
        assert coterie.rescan().left_out.keys() == LEFT_OUT.keys()
        assert listed(coterie) == ["ada", "bob"]
        shutil.copy(tmp_path / "whole", tmp_path / "cut" / "model.safetensors")
        assert coterie.rescan().added == ("cut",)
        assert listed(coterie) == ["ada", "bob", "cut"]
        path.write_text(path.read_text().replace('"bob"', '"bobby"'))
        assert coterie.rescan().removed == ("bob",)
        assert listed(coterie) == ["ada", "cut"]
        assert coterie.ask("where to?").expert in ("ada", "cut")


def test_a_trained_router_may_know_who_is_left_out() -> None:
    """Its classes stay: what it would give to one that is missing is nobody else's."""
    demo, sums = load_composition("demo"), Prompt("What is 47 plus 85?")
    route, _ = Routing(demo).route(sums)
    rest = replace(demo, experts=tuple(expert for expert in demo.experts if expert.name != route.expert))
    with pytest.raises(CompositionError, match=f"trained for '{route.expert}'"):
        Routing(rest)
    left_out = {route.expert: CompositionError("experts", "is not there", "mend it")}
    found, _ = Routing(replace(rest, left_out=left_out, skips_unservable=True)).route(sums)
    assert demo.router is not None
    assert (found.expert, found.is_fallback) == (demo.router.fallback, True)
    assert found.reason == f"{route.expert} is left out; {route.reason}"
    assert route.expert not in dict(found.runners_up)

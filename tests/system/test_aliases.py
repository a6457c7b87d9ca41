"""An expert has other names: whoever asks by one of them reaches it, and is told who answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.system.commands import run
from tests.system.test_rescan import UNCHANGED
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Query
from coterie.core.errors import NotFoundError
from coterie.server.app import make_app

Write = Callable[..., Path]
SLASHED = "org/model:tag"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file anew: names of folders beside it, each with aliases."""
    for seed, name in enumerate(("ada", "bob", "cyd")):
        write_expert(tmp_path / name, seed)

    def written(**aliases: list[str]) -> Path:
        tables = [
            'name = "office"\n[router]\nkind = "rules"\nfallback = "ada"\nrule = [{expert = "ada", min_chars = 1}]\n'
        ]
        for name, others in aliases.items():
            more = f"aliases = {others}\n" if others else ""
            tables.append(f'[[expert]]\nname = "{name}"\ncheckpoint = "{name.removesuffix("-bad")}"\n{more}')
        (tmp_path / "office.toml").write_text("".join(tables))
        return tmp_path / "office.toml"

    return written


def chosen(coterie: Coterie, text: str, model: str = "") -> str:
    return coterie.route(Query.text(text, model)).expert


def test_an_alias_is_asked_in_each_way(write: Write) -> None:
    with Coterie.open(write(ada=["latest"], bob=[SLASHED, "gpt-4o-mini"])) as coterie:
        for name in ("bob", SLASHED, "gpt-4o-mini"):
            assert (
                chosen(coterie, "hi", name)
                == chosen(coterie, f"@{name} hi")
                == chosen(coterie, f"@{name}: hi")
                == "bob"
            )
            assert coterie.embed("hi", name).tolist() == coterie.embed("hi", "bob").tolist()
            coterie.load(name)
            assert "bob" in coterie.resident()
            coterie.pin(name)
            coterie.unpin(name)
            coterie.unload(name)
            assert "bob" not in coterie.resident()
        for text in ("@bob/x hi", "@other/mistral:7b hi", "@latest/x hi", "hi @latest"):
            assert chosen(coterie, text) == "ada"  # the router's, as the text is like no address
        with pytest.raises(NotFoundError, match="did you mean latest"):
            coterie.route(Query.text("hi", "lastest"))
        with pytest.raises(NotFoundError, match="did you mean org/model:tag"):
            coterie.route(Query.text("@org/model:tga hi"))
        said = coterie.ask(Query((Message("user", "hi"),), max_tokens=1, previous_expert="gpt-4o-mini"))
        assert said.expert == "ada"


def test_the_server_lists_each_alias_and_says_who_answered(write: Write) -> None:
    with Coterie.open(write(ada=[], bob=[SLASHED])) as coterie, TestClient(make_app(coterie)) as client:
        rows = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
        assert list(rows) == ["office", "ada", "bob", SLASHED]
        own, other = rows["bob"], rows[SLASHED]
        assert own["coterie"]["aliases"] == [SLASHED]
        alias = {
            "id": SLASHED,
            "display_name": SLASHED,
            "coterie": own["coterie"] | {"kind": "alias", "alias_of": "bob"},
        }
        assert other == own | alias
        assert client.get(f"/v1/models/{SLASHED}").json() == client.get("/v1/models/org%2Fmodel:tag").json() == other
        assert client.get("/v1/models/org/none").status_code == 404
        for name in ("bob", SLASHED, "eve"):
            refused = client.get(f"/v1/models/{name}/load")
            assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert [client.get(f"/v1/models/{name}").status_code for name in ("load", "bob/x", "x/bob")] == [404] * 3
        assert client.get("/v1/models/").json() == client.get("/v1/models").json()
        assert client.get("/v1/models/bob/").json() == own
        assert client.post("/v1/models/bob/load/?wait=true").json()["id"] == "bob"
        loaded = client.post(f"/v1/models/{SLASHED}/load?wait=true").json()
        assert (loaded["id"], loaded["coterie"]["state"]) == (SLASHED, "resident")
        for what in ("pin", "unpin", "unload"):
            assert client.post(f"/v1/models/{SLASHED}/{what}").status_code == 200
        body = {"model": SLASHED, "max_tokens": 2}
        chat = client.post("/v1/chat/completions", json=body | {"messages": [{"role": "user", "content": "hi"}]}).json()
        text = client.post("/v1/completions", json=body | {"prompt": "hi"}).json()
        vectors = client.post("/v1/embeddings", json={"model": SLASHED, "input": "hi"}).json()
        assert (chat["model"], chat["coterie"]["expert"], text["model"], vectors["model"]) == ("bob",) * 4
        assert client.post("/tokenize", json={"model": SLASHED, "prompt": "hi"}).json()["count"] > 0


def test_an_alias_may_end_as_a_path_does(write: Write) -> None:
    with Coterie.open(write(ada=["rescan"], bob=["org/load"])) as coterie, TestClient(make_app(coterie)) as client:
        for name in ("org/load", "rescan"):
            assert client.get(f"/v1/models/{name}").json()["id"] == name
            assert client.post(f"/v1/models/{name}/load?wait=true").json()["id"] == name
        assert client.post("/v1/models/rescan").json()["object"] == "rescan"


@pytest.mark.parametrize(
    ("keys", "headers", "status"), [(["secret"], {}, 401), ([], {"Origin": "http://elsewhere"}, 403)]
)
def test_no_path_goes_by_who_may_ask(write: Write, keys: list[str], headers: dict[str, str], status: int) -> None:
    with Coterie.open(write(ada=[], bob=[SLASHED])) as coterie, TestClient(make_app(coterie, keys)) as client:
        for name in ("bob", SLASHED, "org%2Fmodel:tag", "health%2F..%2Fbob"):
            for act in ("load", "unload", "pin", "unpin"):
                got = client.post(f"/v1/models/{name}/{act}", headers=headers)
                assert got.status_code == status, name
        assert "bob" not in coterie.resident()


def test_aliases_move_with_the_file(write: Write, tmp_path: Path) -> None:
    with Coterie.open(write(ada=["latest"], bob=["old"])) as coterie:
        assert chosen(coterie, "hi", "latest") == "ada"
        write(ada=["old"], bob=["latest"])
        assert coterie.rescan().to_dict() == UNCHANGED | {"renewed": ["ada", "bob"]}
        assert (chosen(coterie, "hi", "latest"), chosen(coterie, "hi", "old")) == ("bob", "ada")
        write(ada=[], bob=[], cyd=["latest"])
        assert coterie.rescan().added == ("cyd",)
        assert chosen(coterie, "hi", "latest") == "cyd"
        with pytest.raises(NotFoundError, match="no expert 'old'"):
            chosen(coterie, "hi", "old")


def test_aliases_stay_where_one_that_shall_have_them_cannot_be_served(write: Write, tmp_path: Path) -> None:
    """And with a kept expert, whose weights are gone, they move: each name is one expert's, whatever happens."""
    with Coterie.open(write(ada=["latest"], bob=[])) as coterie:
        weights = tmp_path / "cyd" / "model.safetensors"
        weights.rename(tmp_path / "away")
        write(ada=["first"], bob=[], cyd=["latest"])
        assert list(coterie.rescan().left_out) == ["cyd"]
        assert chosen(coterie, "hi", "latest") == "ada"
        with pytest.raises(NotFoundError, match="no expert 'first'"):
            chosen(coterie, "hi", "first")
        (tmp_path / "away").rename(weights)
        assert coterie.rescan().added == ("cyd",)
        assert (chosen(coterie, "hi", "latest"), chosen(coterie, "hi", "first")) == ("cyd", "ada")
        (tmp_path / "bob" / "model.safetensors").unlink()
        write(ada=[], bob=["latest"], cyd=[])
        assert list(coterie.rescan().kept) == ["bob"]
        assert chosen(coterie, "hi", "latest") == "bob"
        assert coterie.composition.aliases == ("latest",)


def test_who_gets_a_name_that_was_an_alias_has_it_alone(write: Write, tmp_path: Path) -> None:
    """Also where the others keep their aliases, as somebody else of the file is left out."""
    with Coterie.open(write(ada=["cyd", "latest"], bob=[])) as coterie:
        write_expert(tmp_path / "cyd_bad", 3)
        (tmp_path / "cyd_bad" / "model.safetensors").unlink()
        write(ada=[], bob=[], cyd=[], cyd_bad=["org/new"])
        assert list(coterie.rescan().left_out) == ["cyd_bad"]
        assert (chosen(coterie, "hi", "cyd"), chosen(coterie, "hi", "latest")) == ("cyd", "ada")
        assert coterie.composition.aliases == ("latest",)
        with pytest.raises(NotFoundError, match="org/new is the expert cyd_bad, which is left out"):
            chosen(coterie, "@org/new hi")


def test_commands_know_aliases(write: Write) -> None:
    path = write(ada=["latest"], bob=[SLASHED])
    assert f"aliases of bob: {SLASHED}" in run("check", path).stdout
    assert run("run", path, "--expert", SLASHED, "--max-tokens", "1", "hi").exit_code == 0

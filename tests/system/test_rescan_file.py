"""A composition file is read again while it is served: its experts, what it says of them, and its router."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.system.test_rescan import UNCHANGED, alone, asked
from tests.system.tiny import write_expert

from coterie.api import Chunk, Coterie, Options, Query
from coterie.core.errors import CompositionError, ConflictError, NotFoundError, UsageError
from coterie.server.app import make_app

Write = Callable[..., Path]
KNN = 'kind = "knn"\nfallback = "ada"\nk = 1\n'
ABOUT = {"bob": "what is a noun", "cyd": "how deep is the sea", "dan": "zzz 17", "ada": "good morning"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file anew, with these experts (where else is their folder), each with an example of its own."""
    for seed, name in enumerate(("ada", "bob", "cyd")):
        write_expert(tmp_path / name, seed)

    def written(*names: str, at: Mapping[str, str] | None = None, router: str = KNN, more: str = "") -> Path:
        tables = [f'name = "office"\n[router]\n{router}']
        for name in names:
            tables.append(f'[[expert]]\nname = "{name}"\ncheckpoint = "{(at or {}).get(name, name)}"\n')
            if "knn" in router:
                tables.append(f'examples = ["{ABOUT[name]}"]\n')
        (tmp_path / "office.toml").write_text("".join(tables) + more)
        return tmp_path / "office.toml"

    return written


def routed(coterie: Coterie, name: str) -> str:
    return coterie.route(Query.text(ABOUT[name])).expert


def test_experts_and_examples_come_and_go(write: Write) -> None:
    with Coterie.open(write("ada", "bob")) as coterie:
        assert [routed(coterie, name) for name in ("bob", "cyd")] == ["bob", "ada"]
        write("ada", "bob", "cyd")
        assert coterie.rescan().to_dict() == UNCHANGED | {"added": ["cyd"]}
        assert [routed(coterie, name) for name in ("bob", "cyd")] == ["bob", "cyd"]
        assert coterie.ask(ABOUT["cyd"]).expert == "cyd"
        write("ada", "cyd")
        assert coterie.rescan().to_dict() == UNCHANGED | {"removed": ["bob"]}
        assert [routed(coterie, name) for name in ("bob", "cyd")] == ["ada", "cyd"]
        with pytest.raises(NotFoundError, match="there is no expert 'bob' among 2"):
            asked(coterie, "bob")
        rule = 'kind = "rules"\nfallback = "ada"\n[[router.rule]]\nexpert = "cyd"\nkeywords = ["noun"]\n'
        write("ada", "cyd", router=rule)
        assert coterie.rescan().to_dict() == UNCHANGED
        assert [routed(coterie, name) for name in ("bob", "cyd")] == ["cyd", "ada"]


def test_an_expert_is_another_folder_or_has_other_weights(write: Write, tmp_path: Path) -> None:
    """As versions are put beside each other, or one in the place of the other; and what the file says of it."""
    write_expert(tmp_path / "bob-2", 9)
    with Coterie.open(write("ada", "bob")) as coterie:
        assert asked(coterie, "bob") == alone(tmp_path / "bob")
        write("ada", "bob", at={"bob": "bob-2"}, more="[expert.sampling]\ntemperature = 0.5\n")
        assert coterie.rescan().to_dict() == UNCHANGED | {"renewed": ["bob"]}
        assert coterie.models["bob"].advised.sampling.temperature == 0.5
        write("ada", "bob", at={"bob": "bob-2"})
        assert coterie.rescan().renewed == ("bob",)
        assert asked(coterie, "bob") == alone(tmp_path / "bob-2")
        shutil.copy(tmp_path / "cyd" / "model.safetensors", tmp_path / "bob-2" / "model.safetensors")
        assert coterie.rescan().renewed == ("bob",)
        assert asked(coterie, "bob") == alone(tmp_path / "cyd")


def test_a_file_that_is_wrong_changes_nothing(write: Write) -> None:
    path = write("ada", "bob")
    right = path.read_text()
    with Coterie.open(path) as coterie:
        for text, kind, said in (
            ("name =", CompositionError, "is not TOML"),
            (right.replace("checkpoint", "chekpoint", 1), CompositionError, "chekpoint"),
            (right.replace("office", "shop"), UsageError, "is the file shop now, which was served as office"),
        ):
            path.write_text(text)
            with pytest.raises(kind, match=said):
                coterie.rescan()
            assert routed(coterie, "bob") == "bob"
        write("ada", "bob")
        assert coterie.rescan().to_dict() == UNCHANGED


def test_while_somebody_of_the_file_is_left_out_nobody_is_sent_there(write: Write, tmp_path: Path) -> None:
    """The router stays, and with it whom it may choose; who else is new is served by name."""
    half = write_expert(tmp_path / "dan", 5) / "model.safetensors"
    whole = half.read_bytes()
    half.write_bytes(whole[:-10])
    with Coterie.open(write("ada", "bob")) as coterie:
        write("ada", "cyd", "dan")
        found = coterie.rescan()
        assert (found.added, found.removed, list(found.left_out)) == (("cyd",), (), ["dan"])
        assert "dan of the file cannot be served; mend that, and ask again" in str(found.kept["(router)"])
        assert [routed(coterie, name) for name in ("bob", "cyd", "dan")] == ["bob", "ada", "ada"]
        assert asked(coterie, "cyd") == alone(tmp_path / "cyd")
        half.write_bytes(whole)
        assert coterie.rescan().to_dict() == UNCHANGED | {"added": ["dan"], "removed": ["bob"]}
        assert [routed(coterie, name) for name in ("bob", "cyd", "dan")] == ["ada", "cyd", "dan"]


def test_what_a_router_asks_its_model_at_start_stays_asked(write: Write) -> None:
    """Settings change, examples do not: their vectors were made before the first request."""
    vectors = KNN + 'checkpoint = "cyd"\n'
    with Coterie.open(write("ada", "bob", router=vectors)) as coterie:
        write("ada", "bob", router=vectors + "similarity = 1\n")
        assert coterie.rescan().to_dict() == UNCHANGED
        assert routed(coterie, "bob") == "bob"
        assert coterie.route(Query.text("something else altogether")).is_fallback
        write("ada", "bob", "cyd", router=vectors)
        found = coterie.rescan()
        assert found.added == ("cyd",)
        assert "have changed; restart the server" in str(found.kept["(router)"])
        assert routed(coterie, "cyd") != "cyd"


def test_a_model_that_is_asked_where_to_knows_of_new_experts(write: Write) -> None:
    asks = 'kind = "llm"\nfallback = "ada"\ncheckpoint = "cyd"\n'
    with Coterie.open(write("ada", "bob", router=asks)) as coterie:
        assert coterie.ask("where to").expert == "ada"
        write("ada", "bob", "cyd", router=asks)
        assert coterie.rescan().to_dict() == UNCHANGED | {"added": ["cyd"]}
        assert "\ncyd" in coterie.routing.router.instructions
        assert coterie.ask("where to").expert == "ada"
        write("ada", "bob", router=asks.replace("cyd", "bob"))
        assert list(coterie.rescan().kept) == ["(router)"]


def test_a_model_that_is_asked_where_to_is_read_anew(write: Write, tmp_path: Path) -> None:
    """Its weights too; where its file is half written it stays as it was, and a model of vectors stays in any case."""
    asks, weights = 'kind = "llm"\nfallback = "ada"\ncheckpoint = "cyd"\n', tmp_path / "cyd" / "model.safetensors"
    with Coterie.open(write("ada", "bob", router=asks)) as coterie:
        coterie.ask("where to")
        whole = (tmp_path / "bob" / "model.safetensors").read_bytes()
        weights.write_bytes(whole[:-10])
        assert "truncated" in str(coterie.rescan().kept["(router)"])
        weights.write_bytes(whole)
        assert coterie.rescan().to_dict() == UNCHANGED | {"renewed": ["(router)"]}
        coterie.release_idle()  # so that it comes from its file
        assert coterie.ask("where to").expert == "ada"
        assert coterie.rescan().to_dict() == UNCHANGED
        coterie.release_idle()
        weights.chmod(0o600)  # of which no rescan need be asked
        assert coterie.ask("where to").expert == "ada"
    with Coterie.open(write("ada", "bob", router=KNN + 'checkpoint = "cyd"\n')) as coterie:
        weights.write_bytes(whole)
        assert "files of that, or examples" in str(coterie.rescan().kept["(router)"])


def pair(root: Path, drafts: Mapping[str, str]) -> Path:
    """Experts without a router, each with who guesses for it."""
    tables = [f'[[expert]]\nname = "{name}"\ncheckpoint = "{name}"\ndraft = "{by}"\n' for name, by in drafts.items()]
    (root / "pair.toml").write_text('name = "pair"\n' + "".join(tables).replace('draft = ""\n', ""))
    return root / "pair.toml"


def test_who_guesses_for_whom_is_read_anew(write: Write, tmp_path: Path) -> None:
    """A pair that is new together too, also where who guesses is named later; and a default that is gone."""

    def drafts(coterie: Coterie) -> dict[str, str]:
        return {name: coterie.parts.served[name].draft for name in coterie.composition.names}

    with Coterie.open(pair(tmp_path, {"ada": ""})) as coterie:
        pair(tmp_path, {"ada": "", "bob": "cyd", "cyd": ""})
        assert coterie.rescan().to_dict() == UNCHANGED | {"added": ["bob", "cyd"]}
        assert drafts(coterie) == {"ada": "", "bob": "cyd", "cyd": ""}
        pair(tmp_path, {"ada": "cyd", "bob": "", "cyd": ""})
        assert coterie.rescan().to_dict() == UNCHANGED | {"renewed": ["ada", "bob"]}
        assert drafts(coterie) == {"ada": "cyd", "bob": "", "cyd": ""}
    with Coterie.open(pair(tmp_path, {"ada": "", "bob": ""}), Options(draft="bob")) as coterie:
        assert drafts(coterie) == {"ada": "bob", "bob": ""}
        pair(tmp_path, {"ada": ""})
        for found in (UNCHANGED | {"removed": ["bob"]}, UNCHANGED):
            assert coterie.rescan().to_dict() == found
            assert drafts(coterie) == {"ada": ""}
        pair(tmp_path, {"ada": "", "bob": ""})
        assert coterie.rescan().added == ("bob",)
        assert drafts(coterie) == {"ada": "bob", "bob": ""}


def test_who_is_gone_leaves_room_for_pins(write: Write, tmp_path: Path) -> None:
    big = write_expert(tmp_path / "big", 3, intermediate_size=400) / "model.safetensors"
    with Coterie.open(pair(tmp_path, {"ada": "", "big": ""}), Options(near_bytes=big.stat().st_size + 8192)) as coterie:
        with pytest.raises(ConflictError, match="but big needs"):
            coterie.pin("ada")
        pair(tmp_path, {"ada": ""})
        assert coterie.rescan().removed == ("big",)
        coterie.pin("ada")
        pair(tmp_path, {"ada": "", "big": ""})
        assert "which ada, pinned, would not leave" in str(coterie.rescan().left_out["big"])
        coterie.unpin("ada")
        assert coterie.rescan().added == ("big",)


def test_nobody_is_sent_to_who_has_gone_meanwhile(write: Write, tmp_path: Path) -> None:
    """What was made ready, and not asked yet, is routed again; what runs counts until it has ended."""
    with Coterie.open(write("ada", "bob")) as coterie:
        routed_there, named = coterie.ready(Query.text(ABOUT["bob"])), coterie.ready(Query.text("x", "bob"))
        coterie.submit(Query.text("x", "bob"))
        write("ada", "cyd")
        assert coterie.rescan().removed == ("bob",)
        assert (coterie.status().running, coterie.status().waiting) == (0, 1)
        coterie.submit(routed_there)
        with pytest.raises(NotFoundError, match="there is no expert 'bob'"):
            coterie.submit(named)
        chunks: list[Chunk] = []
        while not coterie.idle:
            chunks += coterie.step(1.0)
        assert sorted(chunk.answer.expert for chunk in chunks if chunk.answer) == ["ada", "bob"]


def test_a_look_from_before_another_rescan_moves_no_router(write: Write) -> None:
    with Coterie.open(write("ada", "bob", "cyd")) as coterie:
        early = coterie.look_again()
        write("ada", "cyd")
        assert coterie.rescan().removed == ("bob",)
        assert "another rescan ran at the same time; ask again" in str(coterie.rescan(early).kept["(router)"])
        assert [routed(coterie, name) for name in ("bob", "cyd")] == ["ada", "cyd"]


def test_experts_without_bytes_stay(tmp_path: Path) -> None:
    text = 'name = "s"\n[[expert]]\nname = "l-{i}"\nconfig = "llama-2-7b"\ncount = 2\n'
    (tmp_path / "s.toml").write_text(text)
    with Coterie.open(tmp_path / "s.toml", Options(device="synthetic:sn40l-node")) as coterie:
        assert coterie.rescan().to_dict() == UNCHANGED
        (tmp_path / "s.toml").write_text(text.replace("count = 2", "count = 3"))
        assert "is opened only at start" in str(coterie.rescan().left_out["l-2"])


def test_over_http(write: Write) -> None:
    with TestClient(make_app(Coterie.open(write("ada", "bob")))) as client:
        write("ada", "cyd")
        assert client.post("/v1/models/rescan").json()["removed"] == ["bob"]
        assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["office", "ada", "cyd"]
        body = {"model": "office", "messages": [{"role": "user", "content": ABOUT["cyd"]}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).json()["coterie"]["expert"] == "cyd"
        assert 'expert="bob"' not in client.get("/metrics").text


def test_a_composition_takes_as_many_tokens_as_who_is_there(write: Write, tmp_path: Path) -> None:
    """Its router's own model is not asked by clients, and who is gone is not either."""
    for name, most in (("long", 256), ("longer", 512)):
        write_expert(tmp_path / name, most, max_position_embeddings=most)
    asks = 'kind = "llm"\nfallback = "ada"\ncheckpoint = "longer"\n'
    with TestClient(make_app(Coterie.open(write("ada", "bob", at={"bob": "long"}, router=asks)))) as client:
        assert client.get("/v1/models/office").json()["max_model_len"] == 256
        write("ada", "cyd", router=asks)
        assert client.post("/v1/models/rescan").json()["removed"] == ["bob"]
        assert client.get("/v1/models/office").json()["max_model_len"] == 128

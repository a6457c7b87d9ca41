"""A folder is looked into again while it is served: new experts, replaced weights, and what must stay as it is."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.system.tiny import write_adapter_of, write_expert, write_mixture

from coterie.api import Coterie, Options, Query
from coterie.api.rescan import _replaced
from coterie.checkpoint.layout import FileIdentity, FileRange
from coterie.composition.composition import load_composition
from coterie.core.dtypes import DType
from coterie.core.errors import NotFoundError, TransferError, UsageError
from coterie.engine.experts import open_expert
from coterie.memory.slab import round_up
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.server.app import make_app

UNCHANGED: dict[str, object] = {"added": [], "renewed": [], "removed": [], "kept": {}, "left_out": {}}
PROMPT = "say it in other words, as often as before"


def asked(coterie: Coterie, name: str) -> tuple[int, ...]:
    return coterie.ask(Query.text(PROMPT, name)).token_ids


def alone(folder: Path) -> tuple[int, ...]:
    """What an expert answers that is served by itself."""
    with Coterie.open(folder) as coterie:
        return asked(coterie, "")


def test_a_new_expert_is_served(office: Path, tmp_path: Path) -> None:
    """Also one whose files were not whole at first, and of another architecture; the old ones answer as before."""
    with Coterie.open(office) as coterie:
        first = asked(coterie, "ada")
        write_expert(office / "cyd", 3)
        half = office / "cyd" / "model.safetensors"
        whole = half.read_bytes()
        half.write_bytes(whole[:-10])
        wider = write_expert(office / "eve", 4, intermediate_size=40, num_hidden_layers=1)
        with pytest.raises(NotFoundError):
            asked(coterie, "eve")
        found = coterie.rescan()
        assert (found.added, found.renewed, dict(found.kept)) == (("eve",), (), {})
        assert "truncated" in str(found.left_out["cyd"])
        half.write_bytes(whole)
        found = coterie.rescan()
        assert (found.added, dict(found.left_out)) == (("cyd",), {})
        assert coterie.composition.names == ("ada", "bob", "eve", "cyd")
        assert {name: asked(coterie, name) for name in ("eve", "cyd")} == {
            "eve": alone(wider),
            "cyd": alone(office / "cyd"),
        }
        assert asked(coterie, "ada") == first
        coterie.pin("cyd")
        assert coterie.status().expert("cyd").pinned
        assert coterie.rescan().to_dict() == UNCHANGED


def test_replaced_weights_are_read_anew(office: Path, tmp_path: Path) -> None:
    """Nothing of the old ones is left, KV state of the same prompt included."""
    with Coterie.open(office) as coterie:
        before = asked(coterie, "ada")
        other = write_expert(tmp_path / "other", 9)
        assert alone(other) != before
        shutil.copy(other / "model.safetensors", office / "ada" / "model.safetensors")
        coterie.pin("ada")
        found = coterie.rescan()
        assert (found.renewed, found.kept.keys()) == ((), {"ada"})
        assert "it is pinned; unpin it first" in str(found.kept["ada"])
        assert asked(coterie, "ada") == before  # as it is in memory
        coterie.unpin("ada")
        assert coterie.rescan().renewed == ("ada",)
        assert coterie.status().expert("ada").state != "resident"
        answer = coterie.ask(Query.text(PROMPT, "ada"))
        assert (answer.token_ids, answer.cached_tokens) == (alone(other), 0)


def test_who_has_no_room_beside_pins_is_left_out(office: Path, tmp_path: Path) -> None:
    """New, or larger than it was: the rescan says so, not its first request."""
    write_expert(office / "dan", 7)
    with Coterie.open(office) as coterie:  # in memory for three
        coterie.pin("ada")
        coterie.pin("bob")
        larger = write_expert(tmp_path / "cyd", 5, DType.F32)
        shutil.copytree(larger, office / "cyd")
        found = coterie.rescan()
        assert found.added == ()
        assert "[cyd] it needs 128.00 KiB of dram in one piece, which ada, bob, pinned" in str(found.left_out["cyd"])
        coterie.unpin("ada")
        assert dict((found := coterie.rescan()).left_out) == {}
        assert found.added == ("cyd",)
        assert [asked(coterie, name) for name in ("cyd", "bob", "ada", "cyd")][-1] == alone(larger)
        write_expert(tmp_path / "more", 6, DType.F32, num_hidden_layers=3)
        shutil.copytree(tmp_path / "more", office / "ada", dirs_exist_ok=True)
        kept = coterie.rescan().kept
        assert "[ada] it needs" in str(kept["ada"])
        assert asked(coterie, "bob")


def test_a_query_made_ready_before_has_the_tokens_of_the_new_tokenizer(office: Path, tmp_path: Path) -> None:
    """Those of the old one would be read by weights that know nothing of them. Who is not replaced is left as it is."""
    other = write_expert(tmp_path / "other", 9)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {symbol: 255 - token for symbol, token in vocab.items()}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with Coterie.open(office) as coterie:
        ready = [coterie.ready(Query.text(PROMPT, name)) for name in ("ada", "bob")]
        before = asked(coterie, "bob")
        shutil.copytree(other, office / "ada", dirs_exist_ok=True)
        assert coterie.rescan().renewed == ("ada",)
        order = [coterie.submit(one) for one in ready]
        answers = {chunk.request_id: chunk.answer for _ in range(400) for chunk in coterie.step() if chunk.answer}
        assert [answers[one].token_ids for one in order] == [alone(other), before]
        assert [one.is_current(coterie.texts, coterie.composition.names) for one in ready] == [False, True]


def test_who_finds_a_file_replaced_is_told_of_a_rescan(office: Path, tmp_path: Path) -> None:
    with Coterie.open(office) as coterie:
        shutil.copy(write_expert(tmp_path / "other", 9) / "model.safetensors", office / "ada" / "model.safetensors")
        with pytest.raises(TransferError, match=r"since its header was read; .* rescan what is served"):
            asked(coterie, "ada")
        assert coterie.rescan().renewed == ("ada",)
        assert asked(coterie, "ada") == alone(tmp_path / "other")


def test_who_is_gone_is_asked_no_more(office: Path, tmp_path: Path) -> None:
    """What was asked of it before is answered, its memory goes, and it may come back, with other weights too."""
    with Coterie.open(office) as coterie:
        before = asked(coterie, "bob")
        coterie.pin("bob")
        under_way = coterie.submit(Query.text(PROMPT, "bob"))
        coterie.step()
        shutil.rmtree(office / "bob")
        assert asked(coterie, "bob") == before  # as it is in memory
        assert coterie.rescan().to_dict() == UNCHANGED | {"removed": ["bob"]}
        assert coterie.composition.names == ("ada",)
        assert [expert.name for expert in coterie.status().experts] == ["ada"]
        for ask in (lambda: asked(coterie, "bob"), lambda: coterie.pin("bob")):
            with pytest.raises(NotFoundError, match="bob"):
                ask()
        answers = {chunk.request_id: chunk.answer for _ in range(400) for chunk in coterie.step() if chunk.answer}
        assert answers[under_way].token_ids == before
        write_expert(office / "bob", 9)
        assert coterie.rescan().added == ("bob",)
        assert asked(coterie, "bob") == alone(office / "bob") != before
        coterie.parts.all_weights.check_integrity()


def test_a_folder_that_is_gone_or_a_file_now_changes_nothing(office: Path) -> None:
    with Coterie.open(office) as coterie:
        before = asked(coterie, "bob")
        (office / "composition.toml").write_text("")
        with pytest.raises(UsageError):
            coterie.rescan()
        (office / "composition.toml").write_text('name = "office"\n[[expert]]\nname = "ada"\ncheckpoint = "ada"\n')
        with pytest.raises(UsageError, match="is the file office now, which was served as office; restart the server"):
            coterie.rescan()
        shutil.rmtree(office)
        with pytest.raises(NotFoundError, match="there is no such file or folder"):
            coterie.rescan()
        assert asked(coterie, "bob") == before


def test_what_is_served_and_cannot_be_read_again_is_kept_and_told_once(office: Path) -> None:
    write_adapter_of(office / "ada", office / "sql", ("q_proj", "up_proj"), 5)
    with Coterie.open(office) as coterie:
        before = [asked(coterie, name) for name in ("bob", "sql")]
        (office / "bob" / "model.safetensors").unlink()
        config = office / "sql" / "adapter_config.json"
        config.write_text(config.read_text().replace(str(office / "ada"), "some/other"))
        found = coterie.rescan()
        assert (found.added, found.renewed, dict(found.left_out)) == ((), (), {})
        assert "bob" in found.kept
        assert [asked(coterie, name) for name in ("bob", "sql")] == before


def test_one_file_of_several_is_enough_to_be_replaced(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(b"x")
    sources = [FileRange(str(file), 0, 1, FileIdentity.of(file.stat())) for file in files]
    model: Any = SimpleNamespace(layout=SimpleNamespace(ranges=[SimpleNamespace(source=one) for one in sources]))
    assert not _replaced(model)
    files[1].write_bytes(b"yy")
    assert _replaced(model)
    files[1].unlink()
    assert _replaced(model)


def test_an_adapter_of_other_matrices_shares_no_steps_with_those_it_had_shared_them_with(office: Path) -> None:
    write_adapter_of(office / "ada", office / "sql", ("q_proj", "up_proj"), 5)
    write_adapter_of(office / "ada", office / "tax", ("q_proj", "up_proj"), 6)
    both = [Query.text(PROMPT, name) for name in ("sql", "tax")]
    with Coterie.open(office) as coterie:
        coterie.ask_all(both)
        shutil.rmtree(office / "tax")
        write_adapter_of(office / "ada", office / "tax", ("v_proj", "down_proj"), 7)
        assert coterie.rescan().renewed == ("tax",)
        found = [answer.token_ids for answer in coterie.ask_all(both)]
    with Coterie.open(office) as coterie:
        assert found == [asked(coterie, "sql"), asked(coterie, "tax")]


def test_an_adapter_of_a_base_that_was_replaced_waits_for_the_next_start(office: Path) -> None:
    write_adapter_of(office / "ada", office / "sql", ("q_proj", "up_proj"), 5)
    with Coterie.open(office) as coterie:
        asked(coterie, "sql")
        shutil.rmtree(office / "ada")
        write_expert(office / "ada", 9)
        write_adapter_of(office / "ada", office / "tax", ("q_proj", "up_proj"), 6)
        found = coterie.rescan()
        assert "is not in memory in its present version" in str(found.left_out["tax"])
        assert "tax" not in coterie.composition.names


def test_adapters_and_deltas_need_a_base_that_is_shared_already(office: Path, tmp_path: Path) -> None:
    for name, seed in (("sql", 5), ("tax", 6)):
        write_adapter_of(office / "ada", tmp_path / name, ("q_proj", "up_proj"), seed)
    with Coterie.open(office) as coterie:
        shutil.copytree(tmp_path / "sql", office / "sql")
        found = coterie.rescan()
        assert f"its base {office}/ada is not in memory" in str(found.left_out["sql"])
    with Coterie.open(office) as coterie:
        asked(coterie, "sql")
        shutil.copytree(tmp_path / "tax", office / "tax")
        write_delta(office / "ada", write_expert(tmp_path / "tuned", 8), office / "poems", Packing(DType.Q8, None))
        assert coterie.rescan().added == ("poems", "tax")
        found = {name: asked(coterie, name) for name in ("tax", "sql", "poems")}
    with Coterie.open(office) as coterie:
        assert found == {name: asked(coterie, name) for name in found}


def test_what_needs_more_memory_than_there_is_is_told(office: Path) -> None:
    write_mixture(office / "many", 4, num_hidden_layers=1)
    with Coterie.open(office, Options(near_bytes=200 << 10)) as coterie:
        write_expert(office / "large", 5, intermediate_size=900)
        why = {name: str(error) for name, error in coterie.rescan().left_out.items()}
        assert why.keys() == {"large"}
        assert "the expert needs" in why["large"]
        assert "larger --near" in why["large"]
        with pytest.raises(NotFoundError, match="the expert large is left out"):
            asked(coterie, "large")


def test_blocks_and_steps_for_which_nothing_was_reserved_are_told(office: Path) -> None:
    write_expert(office / "deep", 4, num_key_value_heads=1, num_hidden_layers=60)  # so that there is room for weights
    with Coterie.open(office) as coterie:
        write_expert(office / "large", 5, intermediate_size=900)
        write_expert(office / "wide", 6, num_key_value_heads=4, hidden_size=64, num_hidden_layers=10)
        why = {name: str(error) for name, error in coterie.rescan().left_out.items()}
        assert why.keys() == {"large", "wide"}
        assert "the values of its largest step needs" in why["large"]
        assert "a KV block needs" in why["wide"]


def test_an_expert_may_fill_the_memory_for_experts(office: Path) -> None:
    size = round_up(open_model(office / "ada").layout.size_bytes)
    with Coterie.open(office, Options(near_bytes=size)) as coterie:
        write_expert(office / "cyd", 3)
        assert coterie.rescan().added == ("cyd",)
        assert asked(coterie, "cyd") == alone(office / "cyd")


def test_over_http(office: Path) -> None:
    with Coterie.open(office) as coterie, TestClient(make_app(coterie)) as client:
        write_expert(office / "cyd", 3)
        assert client.post("/v1/models/rescan", headers={"Origin": "http://elsewhere"}).status_code == 403
        assert client.post("/v1/models/rescan").json()["added"] == ["cyd"]
        assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["office", "ada", "bob", "cyd"]
        body = {"model": "cyd", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_an_expert_is_opened_while_others_go_on(office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of them take seconds, in which the engine's thread must be free."""
    with Coterie.open(office) as coterie, TestClient(make_app(coterie)) as client:
        threads: list[str] = []
        monkeypatch.setattr(
            "coterie.api.rescan.open_expert",
            lambda *args: threads.append(threading.current_thread().name) or open_expert(*args),
        )
        write_expert(office / "cyd", 3)
        assert client.post("/v1/models/rescan").json()["added"] == ["cyd"]
        assert [name.rpartition("_")[0] for name in threads] == ["coterie-beside"]


def test_of_two_looks_at_once_one_counts(office: Path, tmp_path: Path) -> None:
    with Coterie.open(office) as coterie:
        write_expert(office / "cyd", 3)
        shutil.copy(write_expert(tmp_path / "other", 9) / "model.safetensors", office / "ada" / "model.safetensors")
        first, second = coterie.look_again(), coterie.look_again()
        found = coterie.rescan(first)
        assert (found.added, found.renewed) == (("cyd",), ("ada",))
        model = coterie.models["cyd"]
        found = coterie.rescan(second)
        assert (found.added, found.renewed, dict(found.kept), dict(found.left_out)) == ((), (), {}, {})
        assert coterie.models["cyd"] is model
        assert asked(coterie, "ada") == alone(tmp_path / "other")


def test_one_checkpoint_and_the_demo_are_read_again(office: Path, tmp_path: Path) -> None:
    with Coterie.open("demo") as coterie:
        assert coterie.rescan().to_dict() == UNCHANGED
    with Coterie.open(office / "ada") as coterie:
        shutil.copy(write_expert(tmp_path / "other", 9) / "model.safetensors", office / "ada" / "model.safetensors")
        assert coterie.rescan().renewed == ("ada",)
        assert asked(coterie, "") == alone(tmp_path / "other")


def test_what_was_read_from_nowhere_cannot_be_read_again(office: Path) -> None:
    nowhere = replace(load_composition(office), source=None)
    with Coterie(nowhere) as coterie, pytest.raises(UsageError, match="was read from no file or folder; open it again"):
        coterie.rescan()

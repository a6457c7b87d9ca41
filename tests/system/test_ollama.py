"""Ollama's API: chats, texts, vectors and lists in its form, its names, its errors, and what keep_alive does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.model.test_tool_templates import HERMES
from tests.system.adapting import NAMES as ADAPTERS
from tests.system.scripted import write_scripted
from tests.system.serving import leaves, served, until
from tests.system.test_aliases import SLASHED, Write, write
from tests.system.test_reasoning import OPENS, TURNS
from tests.system.test_server_stream_waits import Held, held
from tests.system.tiny import write_expert

from coterie.api import Coterie, Fleet, Options, Query
from coterie.api.sampling import settled
from coterie.checkpoint.generation import advised
from coterie.core.errors import RequestError
from coterie.core.sampling import UNSET, PartialSampling
from coterie.server.ollama.asked import DEFAULT_SAMPLING, conversation, parse_chat
from coterie.server.ollama.names import keep_alive, listed

__all__ = ["held", "write"]  # fixtures of others
SAID = {
    "thinker": ["<think>\n", "Hm", ", four", ".\n", "</think>", "\n\nIt is", " four."],
    "caller": ["Let me see.\n", "<tool_call>\n", '{"name": "add", "arguments": ', '{"a": 2', "}}\n</tool_call>"],
}
TEMPLATES = {"thinker": TURNS, "caller": HERMES}
ADD = {"function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}}
ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
GREEDY = {"temperature": 0, "num_predict": 64}
BASE = {"model": "thinker", "messages": ASKED, "options": GREEDY}
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def coterie(tmp_path_factory: pytest.TempPathFactory) -> Coterie:
    root: Path = tmp_path_factory.mktemp("ollama")
    for name, pieces in SAID.items():
        write_scripted(root / name, pieces, TEMPLATES[name])
    write_scripted(root / "opened", SAID["thinker"][1:], OPENS)
    write_expert(root / "plain", 1)
    write_expert(root / "tuned", 2)
    return Coterie.open(root)


@pytest.fixture(scope="module")
def url(coterie: Coterie) -> Iterator[str]:
    with served(coterie) as found:
        yield found


@pytest.fixture
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/api", timeout=60) as client:
        yield client


def lines(api: httpx.Client, path: str = "/chat", **body: object) -> list[dict]:
    got = api.post(path, json={**BASE, **body} if path == "/chat" else body)
    assert got.headers["content-type"] == "application/x-ndjson", got.text
    return [json.loads(line) for line in got.text.splitlines()]


def whole(api: httpx.Client, path: str = "/chat", **body: object) -> dict:
    got = api.post(path, json={**(BASE if path == "/chat" else {}), **body, "stream": False})
    assert got.status_code == 200, got.text
    return got.json()


def test_a_chat_is_streamed_in_lines_unless_it_is_told_not_to(api: httpx.Client) -> None:
    *parts, last = lines(api)
    assert not any(part["done"] for part in parts)
    assert "".join(part["message"].get("thinking", "") for part in parts) == "Hm, four."
    assert "".join(part["message"]["content"] for part in parts) == "It is four."
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert last["eval_count"] == len(SAID["thinker"]) + 1
    assert all(isinstance(last[name], int) and last[name] >= 0 for name in DURATIONS)
    assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"] > 0
    got = whole(api)
    assert got["message"] == {"role": "assistant", "content": "It is four.", "thinking": "Hm, four."}
    assert (got["model"], got["done_reason"]) == ("thinker", "stop")
    assert whole(api, options={**GREEDY, "num_predict": 3})["done_reason"] == "length"
    assert whole(api, options={**GREEDY, "stop": [" four."]})["message"]["content"] == "It is"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_whole_objects(api: httpx.Client, stream: bool) -> None:
    body = {"model": "caller", "tools": [ADD]}
    parts = lines(api, **body) if stream else [whole(api, **body)]
    calls = [call for part in parts for call in part["message"].get("tool_calls", ())]
    assert [call["function"] for call in calls] == [{"index": 0, "name": "add", "arguments": {"a": 2}}]
    assert "".join(part["message"]["content"] for part in parts) == "Let me see."
    assert parts[-1]["done_reason"] == "stop"


def test_calls_and_what_came_of_them_find_each_other() -> None:
    calls = [{"function": {"name": name, "arguments": {"a": 1}}} for name in ("add", "now")]
    turns = [{"role": "assistant", "content": "", "tool_calls": calls}]
    turns += [{"role": "tool", "content": "3", "tool_name": name} for name in ("now", "add")]
    said, *came = conversation([*ASKED, *turns])[1:]
    assert [call.arguments for call in said.calls] == [{"a": 1}] * 2
    assert [one.call_id for one in came] == [call.call_id for call in reversed(said.calls)]
    assert conversation([{"role": "tool", "content": "3"}])[0].call_id


def test_a_form_holds_the_text(api: httpx.Client) -> None:
    assert json.loads(whole(api, format={"type": "boolean"})["message"]["content"]) in (True, False)
    got = whole(api, "/generate", model="plain", prompt="x", format={"type": "boolean"})
    assert json.loads(got["response"]) in (True, False)


def test_thinking_is_switched_by_the_template(api: httpx.Client) -> None:
    def count(**more: object) -> int:
        return whole(api, model="opened", **more)["prompt_eval_count"]

    assert count(think=False) == count() - len("<think>\n")
    assert count(think=True) == count(think="low") == count()


def test_text_is_generated_raw_or_as_a_chat(api: httpx.Client) -> None:
    *parts, last = lines(api, "/generate", model="thinker", prompt="What?", system="Be short.", options=GREEDY)
    assert "".join(part["response"] for part in parts) == "It is four."
    assert last["done_reason"] == "stop"
    raw = whole(api, "/generate", model="thinker", prompt="What?\n", raw=True, options=GREEDY)
    assert raw["prompt_eval_count"] == len("What?\n")
    scored = whole(api, "/generate", model="plain", prompt="x", logprobs=True, top_logprobs=2, options=GREEDY)
    assert all(len(one["top_logprobs"]) == 2 for one in scored["logprobs"])


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/chat", {"messages": [{**ASKED[0], "images": ["aGk="]}]}, r"\[messages\[0\].images\] are given"),
        ("/chat", {"options": {"temprature": 1}}, r"\[options.temprature\] is not a known field; did you mean temper"),
        ("/chat", {"options": {"temperature": -1}}, r"\[options.temperature\] "),
        ("/chat", {"options": {"num_predict": 0}}, r"\[options.num_predict\] is 0"),
        ("/chat", {"options": {"mirostat": 2}}, "mirostat"),
        ("/chat", {"format": "xml"}, r"\[format\] is 'xml'"),
        ("/chat", {"think": "hard"}, r"\[think\] is 'hard'"),
        ("/chat", {"keep_alive": "5 parsecs"}, r"\[keep_alive\] is '5 parsecs'"),
        ("/chat", {"stream": "yes"}, r"\[stream\] is 'yes'"),
        ("/chat", {"messages": [7]}, r"\[messages\[0\]\] is 7"),
        ("/generate", {"model": "plain", "prompt": "x", "context": [1]}, r"\[context\] is given"),
        ("/generate", {"model": "plain", "prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("/generate", {"model": "plain", "prompt": "x", "suffix": "y"}, "no fill-in-the-middle tokens"),
        ("/generate", {"model": "plain", "prompt": "x", "raw": True, "system": "y"}, r"\[system\] is given with raw"),
        ("/embed", {"model": "plain", "input": [1, 2]}, r"\[input\] is \[1, 2\]"),
        ("/embeddings", {"model": "plain", "prompt": ["x"]}, r"\[prompt\] is"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(api: httpx.Client, path: str, body: dict, message: str) -> None:
    got = api.post(path, json={**BASE, **body} if path == "/chat" else body)
    assert got.status_code == 400, got.text
    with pytest.raises(RequestError, match=message):
        raise RequestError("x", "", got.json()["error"])


def test_unknown_models_are_404_and_what_changes_files_is_refused(api: httpx.Client) -> None:
    for path in ("/chat", "/generate", "/show", "/pull", "/embed"):
        extra = {"/chat": {"messages": ASKED}, "/generate": {"prompt": "x"}, "/embed": {"input": "x"}}.get(path, {})
        got = api.post(path, json={"model": "nobody", **extra})
        assert (got.status_code, list(got.json())) == (404, ["error"]), path
    assert api.post("/pull", json={"model": "plain"}).json() == {"status": "success"}
    for method, path in (("POST", "/create"), ("POST", "/copy"), ("POST", "/push"), ("DELETE", "/delete")):
        got = api.request(method, path, json={"model": "plain"})
        assert got.status_code == 501
        assert "this server" in got.json()["error"]
    assert api.get("/nothing").json()["error"].startswith("[GET /api/nothing]")


def test_models_are_listed_shown_loaded_and_unloaded(api: httpx.Client, coterie: Coterie) -> None:
    rows = {row["model"]: row for row in api.get("/tags").json()["models"]}
    assert set(rows) == {f"{name}:latest" for name in (*SAID, "opened", "plain", "tuned")}
    assert all(len(row["digest"]) == 64 and row["size"] > 0 for row in rows.values())
    assert len({row["digest"] for row in rows.values()}) == len(rows)
    shown = api.post("/show", json={"model": "caller:latest"}).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["llama.context_length"] > 0
    assert "thinking" in api.post("/show", json={"name": "opened"}).json()["capabilities"]
    assert all(part.isdigit() for part in api.get("/version").json()["version"].split("."))
    assert api.head("/version").status_code == api.head("/tags").status_code == 200
    assert whole(api, "/generate", model="plain:latest")["done_reason"] == "load"
    assert "plain:latest" in [row["name"] for row in api.get("/ps").json()["models"]]
    assert whole(api, "/generate", model="plain", keep_alive=0)["done_reason"] == "unload"
    assert "plain" not in coterie.resident()
    for stream in (True, False):
        body = {"model": "plain", "prompt": "x", "options": {"num_predict": 2}, "keep_alive": "0s", "stream": stream}
        assert api.post("/generate", json=body).status_code == 200
        until(lambda: "plain" not in coterie.resident())
    whole(api, "/generate", model="plain", prompt="x", options={"num_predict": 1}, keep_alive=-1)
    assert "plain" in coterie.resident()
    refused = api.post("/generate", json={"model": "plain", "keep_alive": 0}, headers={"Origin": "http://elsewhere"})
    assert refused.status_code == 403


def test_texts_become_vectors_of_length_one_and_long_ones_are_cut(api: httpx.Client, coterie: Coterie) -> None:
    got = api.post("/embed", json={"model": "plain:latest", "input": ["one", "two"]}).json()
    assert (len(got["embeddings"]), got["prompt_eval_count"]) == (2, 6)
    assert got["embeddings"][0] == pytest.approx(coterie.embed("one", "plain")[0].tolist())
    one = api.post("/embeddings", json={"model": "plain", "prompt": "one"}).json()
    assert one["embedding"] == pytest.approx(got["embeddings"][0])
    long = "x" * 300
    most = coterie.models["plain"].max_prompt_tokens
    assert api.post("/embed", json={"model": "plain", "input": long}).json()["prompt_eval_count"] == most
    refused = api.post("/embed", json={"model": "plain", "input": long, "truncate": False})
    assert (refused.status_code, list(refused.json())) == (400, ["error"])
    assert api.post("/embed", json={"model": "plain", "input": ""}).json()["embeddings"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_cancelled(held: tuple[Held, Coterie], stream: bool) -> None:
    disk, coterie = held
    metrics = coterie.parts.engine.metrics
    body = {"model": "four", "prompt": "for ada", "stream": stream, "options": {"num_predict": 2}}
    with served(coterie) as url:
        leaves(url, "/api/generate", body, lambda: metrics.submitted == 1)
        until(lambda: coterie.idle)
        disk.go.set()
        assert (metrics.finished["cancelled"], metrics.finished.total()) == (1, 1)


def test_a_router_is_asked_by_the_compositions_name_and_keys_are_heeded(composition: Path) -> None:
    with served(Coterie.open(composition), ["secret"]) as url:
        assert httpx.get(f"{url}/api/tags").json() == {
            "error": "[Authorization] no key, or not one of this server's; send 'Authorization: Bearer KEY'"
        }
        with httpx.Client(base_url=f"{url}/api", headers={"Authorization": "Bearer secret"}) as api:
            assert api.get("/tags").json()["models"][0]["name"] == "four:latest"
            body = {"model": "four:latest", "prompt": "for ada", "options": {"num_predict": 3}}
            assert whole(api, "/generate", **body)["model"] == "ada"
            assert whole(api, "/generate", model="four")["done_reason"] == "load"
            assert api.post("/generate", json={"model": "four", "keep_alive": 0}).status_code == 400
            assert "completion" in api.post("/show", json={"model": "four"}).json()["capabilities"]


def test_ollamas_defaults_hold_where_nobody_says_anything(folder: Path, tmp_path: Path) -> None:
    with Coterie.open(folder) as coterie:
        asked = parse_chat({"model": "ada", "messages": ASKED, "options": {"seed": 3}}, coterie.composition).query
    assert asked is not None
    sampling, choice = settled(asked, UNSET)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.9)
    assert choice.repetition_penalty == 1
    assert settled(asked, PartialSampling(top_p=0.5))[0].temperature == 0
    assert settled(Query.text("x"), UNSET)[0].temperature == 0
    (tmp_path / "generation_config.json").write_text('{"do_sample": false}')
    found = advised(tmp_path)
    assert found is not None
    assert settled(asked, found.sampling)[0].temperature == 0
    with Coterie.open(folder, Options(sampling="greedy")) as coterie:
        assert settled(asked, coterie.models["ada"].advised.sampling)[0].temperature == 0
    assert DEFAULT_SAMPLING.repetition_penalty is None


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (0, 0), (-1, -1), ("0", 0), ("5m", 300), ("1h30m", 5400), ("-1s", -1), ("1.5s", 1.5), ("-1", -1)],
)
def test_times_are_read_as_clients_write_them(given: object, seconds: float | None) -> None:
    assert keep_alive({"keep_alive": given}) == seconds


def test_names_have_tags_in_lists() -> None:
    assert [listed(name) for name in ("a", "org/a", "a:7b", "host:1/a")] == [
        "a:latest",
        "org/a:latest",
        "a:7b",
        "host:1/a:latest",
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_that_waits_says_nothing_in_lines_and_an_error_is_the_last(
    held: tuple[Held, Coterie], fails: bool
) -> None:
    disk, coterie = held
    disk.fails = fails
    body = {"model": "four", "prompt": "for ada", "options": {"num_predict": 2}}
    with served(coterie) as url, httpx.stream("POST", f"{url}/api/generate", json=body, timeout=20) as got:
        found = (json.loads(line) for line in got.iter_lines())
        first = next(found)
        assert (got.status_code, first["response"], first["done"]) == (200, "", False)
        disk.go.set()
        *_, last = found
    assert ("on fire" in last["error"]) if fails else last["done_reason"]


def test_aliases_and_adapters_are_asked_by_their_names(write: Write, experts: Path) -> None:
    asked = {"prompt": "hi", "options": {"num_predict": 2}}
    with (
        served(Coterie.open(write(ada=["llama3:8b"], bob=[SLASHED]))) as url,
        httpx.Client(base_url=f"{url}/api") as api,
    ):
        names = [row["model"] for row in api.get("/tags").json()["models"]]
        assert names == ["office:latest", "ada:latest", "llama3:8b", "bob:latest", SLASHED]
        for name, expert in (("llama3:8b", "ada"), (SLASHED, "bob"), ("office:latest", "ada")):
            assert whole(api, "/generate", model=name, **asked)["model"] == expert
    with served(Coterie.open(experts)) as url, httpx.Client(base_url=f"{url}/api") as api:
        rows = {row["model"]: row for row in api.get("/tags").json()["models"]}
        for name in ADAPTERS:
            assert whole(api, "/generate", model=f"{name}:latest", **asked)["model"] == name
            assert rows[f"{name}:latest"]["details"]["parent_model"] == "base"


def test_several_devices_answer_as_one_does(folder: Path) -> None:
    """All that answers gives the same; who is in memory is listed once, and unloaded wherever it is."""
    asked = {
        "/chat": {"model": "ada", "messages": ASKED, "options": {**GREEDY, "num_predict": 6}, "stream": False},
        "/generate": {
            "model": "bob:latest",
            "prompt": "Say it",
            "options": {**GREEDY, "num_predict": 6},
            "stream": False,
        },
        "/embed": {"model": "ada", "input": ["one", "another", "a third"]},
        "/embeddings": {"model": "bob", "prompt": "one"},
        "/show": {"model": "cyd"},
        "/pull": {"model": "cyd", "stream": False},
    }
    said = []
    for coterie in (Coterie.open(folder), Fleet.open(folder, Options(beside=("cpu",)))):
        with served(coterie) as url, httpx.Client(base_url=f"{url}/api", timeout=60) as api:
            found = {path: api.post(path, json=body).json() for path, body in asked.items()}
            texts = found["/chat"]["message"]["content"], found["/generate"]["response"]
            vectors = found["/embed"]["embeddings"], found["/embeddings"]["embedding"]
            said.append((texts, vectors, found["/show"], found["/pull"], api.get("/tags").json()))
            for device in coterie.members:  # on all of them
                with device._lock:
                    device.load("ada")
            for _ in range(2):  # what a load began between steps of its own is seen by the next one
                lines(api, "/generate", model="ada", prompt="x", options={"num_predict": 1})
            assert sorted(row["name"] for row in api.get("/ps").json()["models"]) == ["ada:latest", "bob:latest"]
            assert whole(api, "/generate", model="ada", keep_alive=0)["done_reason"] == "unload"
            assert [row["name"] for row in api.get("/ps").json()["models"]] == ["bob:latest"]
            assert all("ada" not in device.resident() for device in coterie.members)
            last = lines(api, "/chat", model="bob", keep_alive=0, options={"num_predict": 1})[-1]
            assert last["done"]
            until(lambda api=api: api.get("/ps").json()["models"] == [])
    assert said[0] == said[1]

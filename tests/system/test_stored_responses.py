"""Responses that are kept: continued, read and deleted by plain HTTP and OpenAI's client, and who may."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.system.callers import SAID, SET, TEMPLATES
from tests.system.fleets import TWO
from tests.system.scripted import write_scripted
from tests.system.serving import leaves, served, until
from tests.system.tiny import write_expert

from coterie.api import Answer, Coterie, Fleet
from coterie.composition.router import Route
from coterie.core.errors import DeviceError, ForgottenError
from coterie.server.app import make_app
from coterie.server.inputs import parse_response
from coterie.server.response_store import ENTRY_BYTES, LINK_BYTES, ClientStore, ResponseStore
from coterie.server.responses import ResponseAnswers

ADD = {"type": "function", "name": "add", "parameters": SET}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("keepers")
    write_scripted(root / "hermes", SAID["hermes"], TEMPLATES["hermes"])
    for number, name in enumerate(("ada", "bob")):
        write_expert(root / name, number + 1, max_position_embeddings=512)
    rules = '[[router.rule]]\nexpert = "bob"\nkeywords = ["bob"]\n'
    experts = "".join(
        f'[[expert]]\nname = "{n}"\ncheckpoint = "{n}"\ndescription = "{n}"\n' for n in ("ada", "bob", "hermes")
    )
    path = root / "composition.toml"
    path.write_text(f'name = "all"\n[router]\nkind = "rules"\nfallback = "ada"\n{rules}{experts}')
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(Coterie.open(folder)) as found:
        yield found


def post(http: httpx.Client, url: str, text: Any, status: int = 200, **more: Any) -> dict[str, Any]:
    body = {"model": "bob", "max_output_tokens": 8, "temperature": 0, "input": text, **more}
    got = http.post(f"{url}/v1/responses", json=body)
    assert got.status_code == status, got.text
    found: dict[str, Any] = got.json()
    return found


def kept(http: httpx.Client, url: str) -> tuple[float, float]:
    """How many are kept, and their bytes, as the metrics have it."""
    families = text_string_to_metric_families(http.get(f"{url}/metrics").text)
    values = {family.name: family.samples[0].value for family in families if family.samples}
    return values["coterie_stored_responses"], values["coterie_stored_responses_bytes"]


@pytest.mark.parametrize("model", ["bob", "all"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_continued_response_is_that_to_the_whole_conversation(
    client: openai.OpenAI, url: str, http: httpx.Client, model: str, stream: bool
) -> None:
    """The same prompt and expert: a router sees the conversation; instructions are those of each request alone."""
    options: dict[str, Any] = {"model": model, "max_output_tokens": 8, "temperature": 0}

    def ask(text: str, **more: Any) -> Any:
        if not stream:
            return client.responses.create(input=text, **options, **more)
        with client.responses.stream(input=text, **options, **more) as events:
            return list(events)[-1].response

    first = ask("tell bob a story", instructions="Be brief.")
    second = ask("and now?", previous_response_id=first.id, instructions="Be long.")
    third = ask("go on", previous_response_id=second.id)
    assert (second.store, second.previous_response_id) == (True, first.id)
    items: list[Any] = [{"role": "user", "content": "tell bob a story"}]
    for text, one, said in (("and now?", first, "Be long."), ("go on", second, None)):
        items += [*one.model_dump()["output"], {"role": "user", "content": text}]
        got = second if one is first else third
        whole = post(http, url, items, store=False, instructions=said, model=model)
        assert whole["output"][0]["content"][0]["text"] == got.output_text
        assert whole["usage"]["input_tokens"] == got.usage.input_tokens
        assert whole["model"] == got.model == "bob"


def test_it_is_read_as_it_was_answered(client: openai.OpenAI, url: str, http: httpx.Client) -> None:
    made = post(http, url, "hello", metadata={"a": "b"})
    assert http.get(f"{url}/v1/responses/{made['id']}").json() == made
    with client.responses.stream(model="bob", input="hello", max_output_tokens=8) as events:
        last = list(events)[-1].response
    assert client.responses.retrieve(last.id).model_dump() == {
        **last.model_dump(),
        "output": last.model_dump()["output"],
    }
    got = http.get(f"{url}/v1/responses/{made['id']}?stream=true")
    assert (got.status_code, "[stream]" in got.text) == (400, True)


def test_input_items_are_those_that_were_read(client: openai.OpenAI, url: str, http: httpx.Client) -> None:
    first = client.responses.create(model="hermes", input="What is 2 + 3?", tools=[ADD])
    call = first.output[-1]
    came = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
    again = client.responses.create(model="hermes", input=[came], previous_response_id=first.id, tools=[ADD])
    items = client.responses.input_items.list(again.id, order="asc").data
    assert [item.type for item in items] == ["message", "message", "function_call", "function_call_output"]
    assert (items[0].content[0].type, items[0].content[0].text) == ("input_text", "What is 2 + 3?")
    assert [one.model_dump(exclude_none=True) for one in items[1:3]] == [
        one.model_dump(exclude_none=True) for one in first.output
    ]
    assert (items[3].output, items[3].status, items[3].id[:4]) == ("5", "completed", "fco_")
    pages = client.responses.input_items.list(again.id, limit=3)
    assert pages.has_more
    assert [item.id for item in pages] == [item.id for item in reversed(items)]  # page after page
    path = f"{url}/v1/responses/{again.id}/input_items"
    for asked, word in (
        ("limit=0", "[limit]"),
        ("limit=x", "[limit]"),
        ("order=up", "[order]"),
        ("after=x", "[after]"),
    ):
        got = http.get(f"{path}?{asked}")
        assert (got.status_code, word in got.json()["error"]["message"]) == (400, True)


def test_items_may_be_sent_by_their_ids(client: openai.OpenAI, url: str, http: httpx.Client) -> None:
    """As clients do that take what is stored for granted; what is not there is named."""
    asked = {"role": "user", "content": "What is 2 + 3?"}
    first = client.responses.create(model="hermes", input=[asked], tools=[ADD])
    came = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "5"}
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    again = client.responses.create(model="hermes", input=[asked, *references, came], tools=[ADD])
    whole = [asked, *[item.model_dump(exclude_none=True) for item in first.output], came]
    assert again.usage == client.responses.create(model="hermes", input=whole, tools=[ADD]).usage.model_copy(
        update={"input_tokens_details": again.usage.input_tokens_details}
    )
    listed = client.responses.input_items.list(again.id, order="asc").data
    assert [item.id for item in listed[1:3]] == [item.id for item in first.output]
    client.responses.delete(first.id)
    for gone in (first.output[0].id, "msg_1_0", "x", "", 3):
        items = [asked, {"type": "item_reference", "id": gone}]
        error = post(http, url, items, 400)["error"]
        assert (error["param"], "is not the id of a stored output item" in error["message"]) == ("input[1]", True)


def test_what_is_deleted_is_gone(client: openai.OpenAI, url: str, http: httpx.Client) -> None:
    """What has continued it goes on."""
    first = post(http, url, "hello")
    second = post(http, url, "and?", previous_response_id=first["id"])
    got = http.delete(f"{url}/v1/responses/{first['id']}")
    assert got.json() == {"id": first["id"], "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first["id"])
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve(first["id"])
    assert f"[response_id] is '{first['id']}', which is not stored" in missing.value.message
    assert http.get(f"{url}/v1/responses/{first['id']}/input_items").status_code == 404
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="bob", input="x", previous_response_id=first["id"])
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    assert len(http.get(f"{url}/v1/responses/{second['id']}/input_items").json()["data"]) == 3
    post(http, url, "more", previous_response_id=second["id"])


def test_who_asks_amiss_is_not_told_to_delete(url: str, http: httpx.Client) -> None:
    got = http.post(f"{url}/v1/responses/resp_1", json={})
    assert got.status_code == 405
    assert {name.strip() for name in got.headers["allow"].split(",")} == {"GET", "HEAD", "DELETE"}
    assert got.json()["error"]["message"].endswith("it takes GET, DELETE")
    got = http.get(f"{url}/v1/responsez/resp_1")
    assert (got.status_code, "GET /v1/responses/{response_id}" in got.text, "DELETE" in got.text) == (404, True, False)
    got = http.delete(f"{url}/v1/responsez/resp_1")
    assert (got.status_code, "DELETE /v1/responses/{response_id}" in got.text) == (404, True)


def test_what_is_not_to_be_stored_is_not(url: str, http: httpx.Client) -> None:
    first, before = post(http, url, "hello"), kept(http, url)
    for given in ({"store": False}, {"store": False, "previous_response_id": first["id"]}):
        made = post(http, url, "hello", **given)
        assert made["store"] is False
        assert http.get(f"{url}/v1/responses/{made['id']}").status_code == 404
    post(http, url, "hello", 404, model="nobody")
    post(http, url, "x" * 5000, 400)
    assert kept(http, url) == before
    post(http, url, "hello", store=None)
    count, size = kept(http, url)
    assert (count, size > before[1] + ENTRY_BYTES) == (before[0] + 1, True)


def test_who_leaves_has_nothing_kept(folder: Path, http: httpx.Client) -> None:
    coterie = Coterie.open(folder)
    form = {"type": "json_schema", "name": "long", "schema": {"type": "string", "minLength": 400}}
    with served(coterie) as url:
        for stream in (False, True):
            count = coterie.status().metrics.submitted
            body = {"model": "bob", "input": "hi", "text": {"format": form}, "stream": stream}
            leaves(url, "/v1/responses", body, lambda count=count: coterie.status().metrics.submitted > count)
        until(lambda: coterie.status().metrics.finished.get("cancelled", 0) == 2)
        assert kept(http, url) == (0, 0)


def test_tokens_of_a_continued_input_are_counted(client: openai.OpenAI, url: str, http: httpx.Client) -> None:
    first = post(http, url, "hello")
    asked: dict[str, Any] = {"model": "bob", "input": "and?", "previous_response_id": first["id"]}
    counted = client.responses.input_tokens.count(**asked)
    assert counted.input_tokens == client.responses.create(**asked, max_output_tokens=4).usage.input_tokens


def test_a_long_conversation_is_read_beside_the_loop(url: str, http: httpx.Client) -> None:
    """What is too long for the expert is told in the new input's name."""
    items = [{"role": "user", "content": "hi", "padding": "x" * 100_000}]
    first = post(http, url, items)
    again = post(http, url, "and?", previous_response_id=first["id"])
    assert again["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    error = post(http, url, "x" * 5000, 400, previous_response_id=again["id"])["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    error = post(http, url, [{"type": "function_call_output", "output": "x"}], 400, previous_response_id=again["id"])
    assert "[input[0]]" in error["error"]["message"]  # counted from the new input's beginning


def test_nobody_reads_what_another_has_kept(folder: Path, http: httpx.Client) -> None:
    with served(Coterie.open(folder), keys=("one", "two")) as url:
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"model": "bob", "input": "my secret", "max_output_tokens": 4}
        made = http.post(f"{url}/v1/responses", json=body, headers=mine).json()
        one = f"{url}/v1/responses/{made['id']}"
        for path in (one, f"{one}/input_items"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers=other).status_code == 404
            assert http.get(path, headers=mine).status_code == 200
        assert http.delete(one, headers=other).status_code == 404
        more = {**body, "previous_response_id": made["id"]}
        got = http.post(f"{url}/v1/responses", json=more, headers=other)
        assert (got.status_code, got.json()["error"]["code"]) == (400, "previous_response_not_found")
        assert http.post(f"{url}/v1/responses", json=more, headers=mine).status_code == 200
        assert http.delete(one, headers=mine).status_code == 200


def test_several_devices_have_one_store(folder: Path, http: httpx.Client) -> None:
    with served(Fleet.open(folder, TWO)) as url:
        previous = None
        for number in range(4):
            made = post(http, url, f"{number}", model="ada", previous_response_id=previous)
            previous = made["id"]
        got = http.get(f"{url}/v1/responses/{previous}/input_items").json()
        assert len(got["data"]) == 7
        assert kept(http, url)[0] == 4


def test_a_server_may_keep_nothing(folder: Path) -> None:
    store = make_app(Coterie.open(folder), responses_bytes=0).state.responses
    body = parse_response({"model": "bob", "input": "x", "store": True}, ClientStore(store, ""))
    assert (body.echoed["store"], body.given) == (False, None)
    with pytest.raises(ForgottenError, match=r"stores no responses; .* --response-store"):
        parse_response({"model": "bob", "input": "x", "previous_response_id": "resp_1"}, ClientStore(store, ""))


def test_a_response_that_failed_is_kept_as_that() -> None:
    mine = ClientStore(ResponseStore(), "me")
    asked = ResponseAnswers(parse_response({"model": "bob", "input": "x"}, mine), 0, {}, mine)
    last = list(asked.failure(DeviceError("cpu", "failed"), "7"))[-1]["response"]
    assert (last["status"], mine.find(last["id"]).response()) == ("failed", last)


def test_calls_that_were_cut_off_were_never_made() -> None:
    """Their arguments could not be read; the client was told of them all the same."""
    store = ResponseStore()
    whole = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}", "status": "completed"}
    cut = {**whole, "call_id": "c2", "arguments": '{"a', "status": "incomplete"}
    store.put("", {"id": "resp_1", "output": [whole, cut]}, b'[{"role": "user", "content": "x"}]', ())
    asked = {"model": "bob", "input": "y", "previous_response_id": "resp_1"}
    query = parse_response(asked, ClientStore(store, "")).query
    assert [len(message.calls) for message in query.messages] == [0, 1, 0]
    assert store.find("", "resp_1").response()["output"] == [whole, cut]


def size_of(store: ResponseStore, response_id: str) -> int:
    stored = store.find("", response_id)
    return len(stored.body) + LINK_BYTES * len(stored.turns) + ENTRY_BYTES + stored.turns[-1].size_bytes


def test_the_least_recently_used_leave_first() -> None:
    store = ResponseStore(10**9)
    given = json.dumps(["x" * 3000]).encode()
    for number in range(4):
        store.put("", {"id": f"{number}", "output": []}, given, ())
    assert store.size_bytes == sum(size_of(store, f"{number}") for number in range(4))
    store.max_bytes = store.size_bytes
    store.find("", "0")
    store.put("", {"id": "4", "output": []}, given, ())
    store.check_integrity()
    with pytest.raises(ForgottenError):
        store.find("", "1")
    turns = store.find("", "2").turns
    store.put("", {"id": "5", "output": []}, b"[]", turns)  # it continues 2, which may then leave
    store.put("", {"id": "6", "output": ["x" * 3000]}, given, ())
    store.check_integrity()
    assert store.find("", "5").turns[0] is turns[0]
    store.put("", {"id": "7", "output": ["x" * 10**6]}, b"[]", ())  # larger than all there is
    store.check_integrity()
    assert (len(store), store.size_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_counted_is_what_is_there(seed: int) -> None:
    draw = random.Random(seed)
    store, made = ResponseStore(60_000), list[tuple[str, str]]()
    left = 0
    for number in range(600):
        owner, earlier = draw.choice("ab"), ()
        if made and draw.random() < 0.7:
            owner, previous = draw.choice(made[-20:])
            try:
                if draw.random() < 0.1:
                    store.drop(owner, previous)
                else:
                    earlier = store.find(owner, previous).turns
            except ForgottenError:
                left += 1
        given = json.dumps(["x" * draw.randrange(2000)]).encode()
        store.put(owner, {"id": f"{number}", "output": [{"type": "message"}]}, given, earlier)
        made.append((owner, f"{number}"))
        store.check_integrity()
        assert len(store.find(owner, f"{number}").turns) == len(earlier) + 1
    assert left
    assert 0 < len(store) < 600


def test_an_answer_is_kept_before_its_end_is_told() -> None:
    """A client that continues it at once finds it."""
    mine = ClientStore(ResponseStore(), "me")
    asked = ResponseAnswers(parse_response({"model": "bob", "input": "x", "stream": True}, mine), 0, {}, mine)
    answer = Answer("7", "so", (1,), "bob", Route("bob", 1.0, (), "named"), "stop", 5, 4, True, 0, 0, 0, 0, False)
    for event in asked.ending([answer]):
        if event["type"] == "response.completed":
            assert mine.find(event["response"]["id"]).response()["status"] == "completed"
            return
    pytest.fail("it did not end")

"""Answers of random experts held to JSON schemas, asked by the official OpenAI client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from tests.pure.tokenizers_made import with_merges
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Query
from coterie.core.errors import RequestError
from coterie.server import choices, choosing
from coterie.server.body import written

SCHEMA = {
    "type": "object",
    "properties": {"who": {"enum": ["ada", "bob"]}, "old": {"type": "boolean"}, "n": {"enum": [1, 22, None]}},
    "required": ["who", "old", "n"],
    "additionalProperties": False,
}
ASKED = [{"role": "user", "content": "who?"}]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts, one of bytes and one with merges, another size and another end."""
    root = tmp_path_factory.mktemp("two")
    write_expert(root / "bytes", 1)
    write_expert(root / "merged", 2, vocab_size=340, eos_token_id=0)
    library = with_merges(json.dumps({"who": "ada", "old": True, "n": 22}), 320, ["<|end|>", "<|user|>", "<|answer|>"])
    library.save(str(root / "merged" / "tokenizer.json"))
    return root


@pytest.fixture(scope="module")
def url(two: Path) -> Iterator[str]:
    with served(Coterie.open(two)) as found:
        yield found


def ask(client: openai.OpenAI, model: str, schema: Any = SCHEMA, **options: Any) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    options = {"max_tokens": 100, "response_format": form, **options}
    return client.chat.completions.create(model=model, messages=ASKED, **options).choices[0]


def test_both_vocabularies_at_once_greedy_and_sampled(client: openai.OpenAI) -> None:
    warm = [{"temperature": 1.5, "seed": seed} for seed in range(3)]
    no_blanks = {"logit_bias": {str(blank): -100 for blank in b" \t\r\n"}}  # as bytes, which are their own ids
    given = {"bytes": no_blanks, "merged": {}}
    asked = [(model, {**options, **given[model]}) for options in ({}, *warm) for model in given]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: ask(client, one[0], **one[1]), asked))
    for choice in found:
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        else:  # blanks of a random model may take all its tokens
            assert choice.finish_reason == "length"
    whole = [model for (model, _), choice in zip(asked, found, strict=True) if choice.finish_reason == "stop"]
    assert whole.count("bytes") == 4
    assert "merged" in whole


def test_an_answer_that_is_cut_short_says_so(client: openai.OpenAI) -> None:
    choice = ask(client, "bytes", {"enum": ["a long word of its own"]}, max_tokens=7)
    assert (choice.finish_reason, choice.message.content) == ("length", '"a long')


def test_any_object(client: openai.OpenAI) -> None:
    for model in ("bytes", "merged"):
        choice = ask(client, model, response_format={"type": "json_object"}, temperature=1, seed=4)
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_may_stand_beside_its_type(client: openai.OpenAI, kind: str) -> None:
    form = {"type": kind, "schema": {"enum": [["x"], {"yy": 1}]}}
    for model in ("bytes", "merged"):
        choice = ask(client, model, response_format=form, temperature=1, seed=4)
        assert json.loads(choice.message.content) in (["x"], {"yy": 1})


def test_logprobs_are_the_models_whatever_the_form_allows(client: openai.OpenAI) -> None:
    choice = ask(client, "bytes", {"enum": ["x"]}, logprobs=True, top_logprobs=1)
    assert choice.message.content == '"x"'
    assert [bytes(one.bytes) for one in choice.logprobs.content] == [b'"', b"x", b'"']
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize(("most", "beside"), [(17, True), (18, False)])  # 2 answers of 3 tokens, each with 2 others
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_many_logprobs_are_written_beside_the_loop(
    url: str, monkeypatch: pytest.MonkeyPatch, path: str, most: int, beside: bool
) -> None:
    body = {"model": "merged", "n": 2, "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    chats = {"messages": ASKED, "logprobs": True, "top_logprobs": 2}
    body |= chats if path.startswith("chat") else {"prompt": "hello", "logprobs": 2}
    before, threads = httpx.post(f"{url}/v1/{path}", json=body), list[str]()

    def seen(found: Any, run: int, within: int) -> bytes:
        threads.append(threading.current_thread().name)
        return written(found, 2, within)

    monkeypatch.setattr(choices, "written", seen)
    monkeypatch.setattr(choices, "QUICK_LOGPROBS", most)
    monkeypatch.setattr(choosing, "QUICK_LOGPROBS", most // 2)
    after = httpx.post(f"{url}/v1/{path}", json=body)
    assert [name.startswith("coterie-reading") for name in threads] == [True] * beside
    was, now = ([(one["index"], one["logprobs"]) for one in said.json()["choices"]] for said in (before, after))
    assert now == was
    assert after.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}, "strange"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "no json_schema with a schema"),
        ({"type": "xml"}, "json_object or json_schema"),
        ({"type": "json_object", "schema": []}, r"\[response_format.schema\] is \[\]; give a schema that is an object"),
        ({"type": "json_object", "schema": {"not": {}}}, "cannot be enforced"),
        ({"type": "json_schema", "schema": {}, "json_schema": {"schema": {}}}, "both a schema and a json_schema"),
    ],
)
def test_a_form_that_cannot_be_kept_is_one_clear_400(client: openai.OpenAI, form: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, "bytes", response_format=form)


def test_python_has_the_same(two: Path) -> None:
    query = Query((Message("user", "who?"),), "merged", max_tokens=100, form=json.dumps({"enum": ["x", "y"]}))
    with Coterie.open(str(two)) as coterie:
        answer = coterie.ask(query)
        assert answer.text in ('"x"', '"y"')
        assert answer.finish_reason == "stop"
        with pytest.raises(RequestError, match="cannot be enforced"):
            coterie.ask(Query(query.messages, "merged", form='{"not": {}}'))

"""What experts think before they answer, by the official OpenAI client: apart from the answer, and back again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tests.model.test_tool_templates import HERMES, TOOLS
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.test_response_events import EVENT

from coterie.api import Coterie, Message, Query
from coterie.core.errors import RequestError
from coterie.server.inputs import parse_response
from coterie.server.openai import parse_chat

TURNS = (
    "{% for m in messages %}{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}\n{% endfor %}{{ 'assistant\n' }}"
)
OPENS = TURNS + "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}"
CHANNELS = "{{ '<|channel|>analysis<|message|>' }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
CHANNELS += "{% for m in messages %}{{ m.thinking }}{{ m.content }}{% endfor %}{{ reasoning_effort }}{{ '\n' }}"
HEAD = ["<|channel|>", "commentary to=functions.add ", "<|constrain|>", "json", "<|message|>"]
MARKS = ("<|channel|>", "<|constrain|>", "<|message|>", "<|start|>")
SAID = {
    "thinker": ["<think>\n", "Hm", ", four", ".\n", "</think>", "\n\nIt is", " four."],
    "opened": ["Hm", ", four", ".\n", "</think>", "\n\nIt is", " four."],
    "caller": [
        "<think>",
        "Hm, four.",
        "</think>\n",
        "<tool_call>\n",
        '{"name": "add", "arguments": ',
        "{}}\n</tool_call>",
    ],
    "channels": ["<|channel|>", "analysis", "<|message|>", "Hm", ", four."],
    "sender": [*HEAD, '{"a": 2, ', '"b": 3}'],
    "plain": ["It is", " four."],
}
TEMPLATES = {
    "thinker": TURNS,
    "opened": OPENS,
    "caller": HERMES + "{# </think> #}",
    "channels": CHANNELS,
    "sender": CHANNELS,
    "plain": TURNS.replace("</think>", ""),
}
ASKED = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def thinkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("thinkers")
    for name, pieces in SAID.items():
        write_scripted(root / name, pieces, TEMPLATES[name], special=MARKS)
    return root


@pytest.fixture(scope="module")
def url(thinkers: Path) -> Iterator[str]:
    with served(Coterie.open(thinkers)) as found:
        yield found


@pytest.mark.parametrize("name", ["thinker", "opened"])
def test_what_was_thought_is_beside_the_answer(client: openai.OpenAI, name: str) -> None:
    got = client.chat.completions.create(model=name, messages=ASKED, n=2)
    for choice in got.choices:
        assert (choice.message.content, choice.finish_reason) == ("It is four.", "stop")
        assert choice.message.reasoning_content == "Hm, four."
    marked = 5 if name == "thinker" else 4
    assert got.usage.completion_tokens_details.reasoning_tokens == 2 * marked
    assert got.choices[0].coterie["reasoning_tokens"] == marked
    assert "reasoning" not in got.choices[0].coterie


def test_who_does_not_think_has_none(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="plain", messages=ASKED, reasoning_effort="high")
    assert not hasattr(got.choices[0].message, "reasoning_content")
    assert got.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("name", ["thinker", "opened"])
def test_thoughts_are_streamed_as_they_come(client: openai.OpenAI, name: str) -> None:
    deltas = [e.choices[0].delta for e in client.chat.completions.create(model=name, messages=ASKED, stream=True)]
    thought = [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)]
    assert thought[0].startswith("Hm")
    assert "".join(thought) == "Hm, four."
    assert "".join(delta.content or "" for delta in deltas) == "It is four."
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")


def test_a_thought_that_is_cut_leaves_no_answer(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="opened", messages=ASKED, max_tokens=2).choices[0]
    assert (got.message.content, got.message.reasoning_content, got.finish_reason) == ("", "Hm, four", "length")


def test_a_stop_string_stops_answers_and_no_thought(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="thinker", messages=ASKED, stop=[" four"]).choices[0].message
    assert (got.reasoning_content, got.content) == ("Hm, four.", "It is")


def test_calls_behind_a_thought(client: openai.OpenAI) -> None:
    for stream in (False, True):
        got = client.chat.completions.create(model="caller", messages=ASKED, tools=TOOLS, stream=stream)
        said = [event.choices[0].delta for event in got] if stream else [got.choices[0].message]
        assert "".join(getattr(part, "reasoning_content", None) or "" for part in said) == "Hm, four."
        assert [call.function.name for part in said for call in part.tool_calls or ()] == ["add"]
        assert not any(part.content for part in said)


def test_what_was_thought_goes_back_by_the_template(client: openai.OpenAI) -> None:
    """Under the name that the answer has, or the other one that servers give it."""
    counts = []
    for said in ({}, {"reasoning_content": "Hm."}, {"reasoning": "Hm."}, {"reasoning": None}, {"reasoning": {}}):
        turns = [*ASKED, {"role": "assistant", "content": "4", **said}, ASKED[0]]
        counts.append(client.chat.completions.create(model="thinker", messages=turns).usage.prompt_tokens)
    assert counts == [counts[0], counts[0] + len("<think>.</think>") - 6, counts[1], counts[0], counts[0]]


def test_channels_tell_thoughts_and_calls(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="channels", messages=ASKED).choices[0].message
    assert (got.content, got.reasoning_content) == ("", "Hm, four.")
    for choice in ("auto", "required"):
        called = client.chat.completions.create(model="sender", messages=ASKED, tools=TOOLS, tool_choice=choice)
        (call,) = called.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 2, "b": 3})
        assert called.choices[0].finish_reason == "tool_calls"
    cut = client.chat.completions.create(
        model="sender", messages=ASKED, tools=TOOLS, tool_choice="required", max_tokens=6
    )
    (call,) = cut.choices[0].message.tool_calls
    assert (call.function.arguments, cut.choices[0].finish_reason) == ('{"a": 2, ', "length")
    untold = client.chat.completions.create(model="sender", messages=ASKED).choices[0].message
    assert (untold.content, untold.tool_calls) == ("", None)


def test_how_much_is_to_be_thought_is_told_to_the_template(client: openai.OpenAI) -> None:
    def count(model: str, **more: object) -> int:
        return client.chat.completions.create(model=model, messages=ASKED, max_tokens=1, **more).usage.prompt_tokens

    assert count("opened", reasoning_effort="none") == count("opened") - len("<think>\n")
    assert count("opened", reasoning_effort="low") == count("opened")
    switched = {"chat_template_kwargs": {"enable_thinking": True}}
    assert count("opened", reasoning_effort="none", extra_body=switched) == count("opened")
    assert count("channels", reasoning_effort="minimal") == count("channels") + len("low")
    assert count("channels", reasoning_effort="xhigh") == count("channels") + len("high")
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        count("opened", reasoning_effort="much")


def test_a_form_is_held_behind_the_thought(thinkers: Path) -> None:
    """The script would say no JSON; its thought is free, and then it must."""
    schema = json.dumps({"type": "boolean"})
    with Coterie.open(thinkers) as coterie:
        got = coterie.ask(Query((Message("user", "2?"),), "opened", form=schema))
    assert got.reasoning == "Hm, four."
    assert json.loads(got.text) in (True, False)


def test_python_has_both(thinkers: Path) -> None:
    with Coterie.open(thinkers) as coterie:
        got = coterie.ask(Query.text("2?", "thinker"))
        assert (got.text, got.reasoning, got.last_line) == ("It is four.", "Hm, four.", "It is four.")
        assert got.to_dict()["reasoning"] == "Hm, four."
        chunks = list(coterie.stream(Query.text("2?", "thinker")))
        raw = coterie.ask(Query((Message("user", "2?\n"),), "thinker", raw=True))
    assert "".join(chunk.reasoning for chunk in chunks) == "Hm, four."
    assert (raw.text, raw.reasoning) == ("".join(SAID["thinker"]), "")


def test_whose_template_has_marks_may_think(thinkers: Path) -> None:
    with Coterie.open(thinkers) as coterie:
        texts = coterie.texts
        assert [name for name in SAID if texts[name].thinks(Query.text("a"))] == [n for n in SAID if n != "plain"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_an_item_of_reasoning(url: str, client: openai.OpenAI, stream: bool) -> None:
    asked = {"model": "thinker", "input": "2 + 2?", "reasoning": {"effort": "low", "summary": "auto"}}
    if stream:
        lines = httpx.post(f"{url}/v1/responses", json={**asked, "stream": True}).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        for event in events:
            EVENT.validate_python(event)
        kinds = [event["type"].removeprefix("response.") for event in events]
        thought = ["output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"]
        assert list(dict.fromkeys(kinds[2:])) == [
            *thought,
            "content_part.done",
            "output_item.done",
            "output_text.delta",
            "output_text.done",
            "completed",
        ]
        got = events[-1]["response"]
    else:
        got = client.responses.create(**asked).model_dump()
    reasoning, message = got["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm, four."}]
    assert (reasoning["type"], reasoning["summary"], reasoning["status"]) == ("reasoning", [], "completed")
    assert message["content"][0]["text"] == "It is four."
    assert got["usage"]["output_tokens_details"]["reasoning_tokens"] == 5
    assert got["reasoning"]["effort"] == "low"


def test_a_response_that_is_cut_in_a_thought(client: openai.OpenAI) -> None:
    got = client.responses.create(model="opened", input="2 + 2?", max_output_tokens=2)
    (item,) = got.output
    assert (item.type, item.status, got.status, got.output_text) == ("reasoning", "incomplete", "incomplete", "")


def test_items_of_reasoning_go_back_to_what_came_of_them() -> None:
    def thought(text: str) -> dict:
        return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}

    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    came = {"type": "function_call_output", "call_id": "c", "output": "4"}
    said = {"role": "assistant", "content": "Four."}
    user = {"role": "user", "content": "2 + 2?"}
    items = [user, thought("a"), call, came, thought("b"), said, user, thought("lost"), user]
    found = parse_response({"model": "ada", "input": items}).query.messages
    assert [(m.role, m.reasoning) for m in found if m.role == "assistant"] == [("assistant", "a"), ("assistant", "b")]
    assert len(found) == 6


def test_efforts_of_both_endpoints_are_one() -> None:
    chat = parse_chat({"model": "a", "messages": ASKED, "reasoning_effort": "none"}).query.switches
    response = parse_response({"model": "a", "input": "b", "reasoning": {"effort": "none"}}).query.switches
    assert chat == response == {"enable_thinking": False, "thinking": False}
    with pytest.raises(RequestError, match=r"reasoning\.effort"):
        parse_response({"model": "a", "input": "b", "reasoning": {"effort": 3}})

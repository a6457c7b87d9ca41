"""Asking on the web page, where there is a node: what is sent, and how what comes is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.playing import EVIL, answered, needs_node, play, stream

from coterie.api import Coterie, Options
from coterie.server.events import snapshot


@pytest.fixture(scope="module")
def coterie(composition: Path) -> Iterator[Coterie]:
    with Coterie.open(str(composition), Options(near_bytes=200 * 1024)) as found:
        yield found


@needs_node
def test_an_answer_is_shown_as_text_with_who_gave_it(tmp_path: Path, coterie: Coterie) -> None:
    details = {"expert": "bob", "confidence": 0.8, "is_fallback": False, "hit": False, "switch_s": 0.0021,
               "ttft_s": 0.5, "tokens_per_s": 99.6}  # fmt: skip
    head = {"id": "chatcmpl-1", "model": "bob"}
    parts = [
        ": waiting for bob, 1 of 2 GiB",
        *[
            "data: " + json.dumps({**head, "choices": [{"delta": delta}], **more})
            for delta, more in (({"content": "1 < 2 "}, {}), ({"content": EVIL}, {}), ({}, {"coterie": details}))
        ],
        "data: [DONE]",
    ]
    routed = {"expert": "bob", "request": "chatcmpl-1", "runners_up": [{"expert": "ada", "confidence": 0.15}]}
    answers = {
        "/v1/events": [
            stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())), ("routed", routed))
        ],
        "/v1/chat/completions": [{"body": "\n\n".join(parts) + "\n\n"}],
    }
    found = play(tmp_path, answers, [["ask", "submit", "which is less?"]])
    talk = found["shown"]["talk"]
    assert talk.startswith(f"which is less? 1 < 2 {EVIL}")
    facts = "bob · confidence 0.80 · switch 2.10 ms · first token 500 ms · 100 tokens/s · else ada 0.15"
    assert talk.endswith(facts)
    body = json.loads(next(ask["body"] for ask in found["asked"] if ask["path"] == "/v1/chat/completions"))
    assert body == {"model": "four", "messages": [{"role": "user", "content": "which is less?"}], "stream": True}


@needs_node
@pytest.mark.parametrize("template", [True, False])
def test_a_system_message_and_a_temperature_go_with_each_question(
    template: bool, tmp_path: Path, coterie: Coterie
) -> None:
    """As they stand then; a model that knows no conversation is sent the question alone."""
    known = snapshot(coterie, coterie.status(), coterie.watch.residents())
    known = {**known, "experts": [{**expert, "chat_template": template} for expert in known["experts"]]}
    whole = {"body": 'data: {"id": "1", "model": "bob", "choices": []}\n\ndata: [DONE]\n\n'}
    answers = {"/v1/events": [stream(("snapshot", known))], "/v1/chat/completions": [whole, whole]}
    does = [["system", "type", " Be brief. "], ["ask", "submit", "one"], ["system", "type", ""]]
    found = play(tmp_path, answers, [*does, ["temperature", "type", "0.5"], ["ask", "submit", "two"]])
    first, second = (json.loads(ask["body"]) for ask in found["asked"] if "body" in ask)
    one, two = ({"role": "user", "content": text} for text in ("one", "two"))
    system, answer = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": ""}
    assert (first["messages"], "temperature" in first) == ([system, one] if template else [one], False)
    assert (second["messages"], second["temperature"]) == ([one, answer, two] if template else [two], 0.5)


@needs_node
def test_an_answer_that_fails_or_breaks_off_is_no_part_of_the_conversation(tmp_path: Path, coterie: Coterie) -> None:
    begun = "data: " + json.dumps({"id": "1", "model": "bob", "choices": [{"delta": {"content": "half an"}}]}) + "\n\n"
    failed = "data: " + json.dumps({"error": {"message": EVIL}}) + "\n\n"
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))],
        "/v1/chat/completions": [{"body": begun + failed}, {"body": begun}, {"body": begun + "data: [DONE]\n\n"}],
    }
    found = play(tmp_path, answers, [["ask", "submit", text] for text in ("one", "two", "three")])
    talk = found["shown"]["talk"]
    assert f"one half an {EVIL} two half an the answer broke off; ask again three half an bob" == talk
    asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    assert asked == [[{"role": "user", "content": text}] for text in ("one", "two", "three")]


@needs_node
def test_what_was_thought_stands_before_the_answer_and_goes_back(tmp_path: Path, coterie: Coterie) -> None:
    deltas = [{"content": ""}, {"reasoning_content": "Hm, "}, {"reasoning_content": EVIL}, {"content": "Four."}]
    head = {"id": "1", "model": "bob"}
    parts = [f"data: {json.dumps({**head, 'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))],
        "/v1/chat/completions": [{"body": "".join([*parts, "data: [DONE]\n\n"])}] * 2,
    }
    found = play(tmp_path, answers, [["ask", "submit", "2 + 2?"], ["ask", "submit", "sure?"]])
    talk = f"2 + 2? thought Hm, {EVIL} Four. bob sure? thought Hm, {EVIL} Four. bob"
    assert " ".join(found["shown"]["talk"].split()) == talk
    *_, asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    assert asked[1] == {"role": "assistant", "content": "Four.", "reasoning_content": f"Hm, {EVIL}"}


MARKDOWN = f"""## How
Use `sorted`, **not** {EVIL}:

```python
def f(a):
    return `a` **2
```
~~~
``` no end of it
~~~
* one `open
  12. twelve
| a | b |
|--|--|
#hash and 12.5, -1
** two"""


@needs_node
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_code_stands_apart_however_it_comes(tmp_path: Path, coterie: Coterie, size: int) -> None:
    pieces = [MARKDOWN[at : at + size] for at in range(0, len(MARKDOWN), size)]
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))],
        "/v1/chat/completions": [answered(*pieces), answered("so")],
    }
    found = play(tmp_path, answers, [["ask", "submit", "how?"], ["ask", "submit", "and?"]])
    blocks = ["def f(a):\n     return `a` **2\n", "``` no end of it\n"]  # lines are joined by a blank in this document
    assert found["marked"]["pre"] == blocks
    assert found["marked"]["code"] == ["sorted", *blocks]
    assert found["marked"]["strong"] == ["not"]
    talk = found["shown"]["talk"]
    assert f"how? How\n Use sorted , not {EVIL}:\n" in talk
    assert "* one `open\n" in talk
    assert "#hash and 12.5, -1\n ** two" in talk
    kinds = {kind: ["".join(text.split()) for text in texts] for kind, texts in found["kinds"].items()}
    assert kinds == {"head": ["How"], "item": ["*one`open", "12.twelve"], "cells": ["|a|b|", "|--|--|"]}
    *_, asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    assert asked[1] == {"role": "assistant", "content": MARKDOWN}


@needs_node
def test_a_block_that_does_not_end_is_shown(tmp_path: Path, coterie: Coterie) -> None:
    """Cut by a limit, which is told."""
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))],
        "/v1/chat/completions": [answered("So:\n```\nx = ", "1", reason="length")],
    }
    details = {"expert": "bob", "confidence": 1, "hit": True, "ttft_s": 1, "tokens_per_s": 2, "reason": "it was named"}
    last = f"data: {json.dumps({'id': '1', 'choices': [], 'coterie': details})}\n\n"
    body = answers["/v1/chat/completions"][0]["body"]
    answers["/v1/chat/completions"][0]["body"] = body.replace("data: [DONE]", last + "data: [DONE]")
    found = play(tmp_path, answers, [["ask", "submit", "how?"]])
    assert found["marked"]["pre"] == ["x = 1"]
    assert found["shown"]["talk"].endswith("2 tokens/s · cut: it has as many tokens as it may")


@needs_node
def test_what_was_read_before_a_stop_may_be_asked_about(tmp_path: Path, coterie: Coterie) -> None:
    """Without any, the question is there to be asked again, as where the answer fails."""
    failed = {"body": 'data: {"error": {"message": "no"}}\n\n'}
    begun, none = answered("It is ", "lo", done=False, hangs=True), answered(done=False, hangs=True)
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))],
        "/v1/chat/completions": [begun, answered("Well."), none, failed],
    }
    stop = ["stop", "click", None]
    does = [["ask", "submit", "why?"], stop, ["ask", "submit", "why that?"], ["ask", "submit", "third"], stop]
    found = play(tmp_path, answers, does)
    asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    said = [("user", "why?"), ("assistant", "It is lo"), ("user", "why that?")]
    assert [(one["role"], one["content"]) for one in asked[1]] == said
    assert "why? It is lo stopped why that? Well. bob third stopped" in found["shown"]["talk"]
    assert found["prompt"] == "third"
    found = play(tmp_path, {**answers, "/v1/chat/completions": answers["/v1/chat/completions"][3:]}, does[:1])
    assert found["prompt"] == "why?"


@needs_node
def test_a_folder_without_a_router_asks_an_expert(tmp_path: Path, folder: Path) -> None:
    """Its own name would be refused: nobody chooses there."""
    with Coterie.open(folder) as coterie:
        answers = {
            "/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))],
            "/v1/chat/completions": [answered("x")],
        }
        found = play(tmp_path, answers, [["ask", "submit", "hello"]])
    assert found["shown"]["model"] == "ada bob cyd dan"
    assert json.loads(next(ask["body"] for ask in found["asked"] if "body" in ask))["model"] == "ada"
    with Coterie.open(folder / "bob") as coterie:
        answers = {"/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))]}
        found = play(tmp_path, answers, [])
    assert (found["shown"]["model"], found["chosen"]) == ("bob", "bob")


def messages_of(found: dict) -> list[list[str]]:
    """What each question was sent with."""
    return [[one["content"] for one in json.loads(ask["body"])["messages"]] for ask in found["asked"] if "body" in ask]


@needs_node
def test_an_expert_without_a_chat_template_is_asked_with_one_text(tmp_path: Path, coterie: Coterie) -> None:
    """It would refuse a conversation, of which it takes part all the same."""
    said = snapshot(coterie, coterie.status(), coterie.watch.residents())
    said["experts"][0]["chat_template"] = False  # ada
    details = {"expert": "ada", "confidence": 1, "hit": True, "ttft_s": 1, "tokens_per_s": 2, "reason": "it was named"}
    last = f"data: {json.dumps({'id': '1', 'choices': [], 'coterie': details})}\n\n"
    alone = answered("x")
    alone["body"] = alone["body"].replace("data: [DONE]", last + "data: [DONE]")
    questions = [["ask", "submit", text] for text in ("one", "two", "three")]
    does = [questions[0], ["model", "change", "ada"], questions[1], ["model", "change", "bob"], questions[2]]
    answers = {
        "/v1/events": [stream(("snapshot", said))],
        "/v1/chat/completions": [answered("a"), alone, answered("b")],
    }
    found = play(tmp_path, answers, does)
    assert messages_of(found) == [["one"], ["two"], ["one", "a", "two", "x", "three"]]
    assert (
        "ada · hit · first token 1.00 s · 2 tokens/s · no chat template: it had this text alone"
        in found["shown"]["talk"]
    )
    assert "confidence" not in found["shown"]["talk"]  # nobody chose
    for expert in said["experts"]:  # whoever the router takes
        expert["chat_template"] = False
    answers = {"/v1/events": [stream(("snapshot", said))], "/v1/chat/completions": [answered("a"), answered("b")]}
    assert messages_of(play(tmp_path, answers, questions[:2])) == [["one"], ["two"]]


@needs_node
def test_escape_stops(tmp_path: Path, coterie: Coterie) -> None:
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))],
        "/v1/chat/completions": [answered("It is ", done=False, hangs=True)],
    }
    asks, escapes = ["ask", "submit", "why?"], ["document", "keydown", "Escape"]
    found = play(tmp_path, answers, [escapes, asks, ["document", "keydown", "a"]])
    assert found["left"] == []
    found = play(tmp_path, answers, [asks, escapes])
    assert found["left"] == ["/v1/chat/completions"]
    assert found["shown"]["talk"].endswith("It is stopped")


@needs_node
def test_a_server_that_is_away_is_told_in_words(tmp_path: Path, coterie: Coterie) -> None:
    """Browsers have others, each its own."""
    whole = stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))
    answers = {"/v1/events": [whole, "away", whole], "/v1/chat/completions": ["away", {"body": "<h1>", "status": 502}]}
    found = play(tmp_path, answers, [["ask", "submit", "one"], ["ask", "submit", "two"]])
    assert found["shown"]["talk"].startswith("one no connection to the server two the server answered HTTP 502")
    assert (found["prompt"], found["shown"]["link"]) == ("two", "the server has ended this; asking again")
    found = play(tmp_path, {"/v1/events": [whole, *["away"] * 99]}, [])
    assert found["shown"]["link"] == "no connection to the server; asking again"


@needs_node
def test_a_page_that_nobody_sees_lets_its_stream_go(tmp_path: Path, coterie: Coterie) -> None:
    """A browser has six connections to a server for all tabs: a seventh would wait for ever."""
    whole = {**stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents()))), "hangs": True}
    hides, shows = ["document", "visibilitychange", "hidden"], ["document", "visibilitychange", "visible"]
    answers = {"/v1/events": [whole, whole, whole]}
    for does, asked, left in (([], 1, 0), ([hides], 1, 1), ([hides, shows], 2, 1), ([hides, shows, hides], 2, 2)):
        found = play(tmp_path, answers, does)
        assert (len(found["asked"]), len(found["left"])) == (asked, left), does
    assert found["shown"]["title"] == "four"

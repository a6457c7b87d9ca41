"""Answers held to regular expressions, choices and grammars: over HTTP, in Python and in a file of requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.model.test_tool_templates import HERMES
from tests.pure.tokenizers_made import with_merges
from tests.system.commands import run
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie.api import Constraint, Coterie, Message, Query
from coterie.cli.opening import options
from coterie.core.errors import RequestError
from coterie.core.sampling import PartialSampling

ASKED = [{"role": "user", "content": "which?"}]
TEXTS = ["a", "ab", "日本 é", 'say "no"\n']
LARK = 'start: sum\nsum: INT | "(" sum ")" | sum "+" INT\nINT: /[0-9]/'
GBNF = 'root ::= "<" [a-cé]{1,3} ">" | "-" root'
WAYS = {
    "regex": ({"structured_outputs": {"regex": "[0-9]{2}-(x|yz)"}}, "[0-9]{2}-(x|yz)"),
    "choice": ({"structured_outputs": {"choice": TEXTS}}, "|".join(map(re.escape, TEXTS))),
    "one": ({"guided_choice": ["no other"]}, "no other"),
    "lark": ({"structured_outputs": {"grammar": LARK}}, r"[0-9(+)]+"),
    "gbnf": ({"grammar": GBNF}, "-*<[a-cé]{1,3}>"),
    "schema": ({"guided_json": {"enum": [1, "x"]}}, '1|"x"'),
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random experts, one of bytes and one with merges, and one that takes tools."""
    root = tmp_path_factory.mktemp("three")
    write_expert(root / "bytes", 1)
    write_expert(root / "merged", 2, vocab_size=340, eos_token_id=0)
    library = with_merges("no other 10-x 日本 say (1+2)", 320, ["<|end|>", "<|user|>", "<|answer|>"])
    library.save(str(root / "merged" / "tokenizer.json"))
    write_scripted(root / "caller", ["So", "."], HERMES)
    return root


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(Coterie.open(folder)) as found:
        yield found


def asked(url: str, path: str, body: dict) -> list[tuple[str, str]]:
    """Text and reason of each choice."""
    given = {"prompt": "which? "} if path == "completions" else {"messages": ASKED}
    got = httpx.post(f"{url}/v1/{path}", json={"max_tokens": 60, **given, **body}, timeout=60)
    assert got.status_code == 200, got.text
    if not body.get("stream"):
        choices = got.json()["choices"]
        return [(one["text"] if "text" in one else one["message"]["content"], one["finish_reason"]) for one in choices]
    texts, reasons = dict.fromkeys(range(body["n"]), ""), {}
    for line in got.text.splitlines():
        if line.startswith("data: {"):
            for one in json.loads(line[6:])["choices"]:
                texts[one["index"]] += one["text"] if "text" in one else one["delta"].get("content") or ""
                reasons[one["index"]] = one["finish_reason"] or reasons.get(one["index"])
    return [(texts[at], reasons[at]) for at in texts]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("model", ["bytes", "merged"])
@pytest.mark.parametrize("way", WAYS)
def test_an_answer_matches_or_is_cut_and_a_stream_says_the_same(url: str, way: str, model: str, path: str) -> None:
    form, pattern = WAYS[way]
    body = {"model": model, "n": 4, "temperature": 1, "seed": 5, **form}
    found = asked(url, path, body)
    assert asked(url, path, {**body, "stream": True}) == found
    assert "stop" in {why for _, why in found} or way in ("lark", "gbnf")
    for said, why in found:
        assert re.fullmatch(pattern, said) if why == "stop" else why == "length", said


def test_what_max_tokens_cuts_says_so(url: str) -> None:
    body = {"model": "bytes", "guided_choice": ["a long text"], "max_tokens": 6}
    assert asked(url, "chat/completions", body) == [("a long", "length")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("form", "where", "said"),
    [
        ({"structured_outputs": {"regex": "a(b"}}, "structured_outputs.regex", "unclosed group, at '(b'"),
        ({"guided_grammar": "start: x"}, "guided_grammar", 'unknown name: "x" (line 1, column 8)'),
        ({"ebnf": "root ::= x"}, "ebnf", "Rule 'x' not found"),
        ({"regex": "((x{1000}){1000}){1000}", "max_tokens": 5}, "regex", "too many"),
        ({"guided_choice": []}, "guided_choice", "has no texts"),
    ],
)
def test_a_form_that_cannot_be_kept_is_one_sentence(url: str, form: dict, where: str, said: str, stream: bool) -> None:
    body = {"model": "merged", "messages": ASKED, "stream": stream, **form}
    got = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    error = got.json()["error"]
    assert (got.status_code, error["param"], said in error["message"]) == (400, where, True), error
    assert "\n" not in error["message"]
    assert asked(url, "chat/completions", {"model": "merged", "guided_choice": ["on"]}) == [("on", "stop")]


def test_beside_tools_it_is_refused_but_where_none_may_be_called(url: str) -> None:
    body = {"model": "caller", "messages": ASKED, "tools": [TOOL], "guided_choice": ["yes", "no"], "max_tokens": 9}
    got = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert got.status_code == 400
    assert "[guided_choice] constrains the whole answer, but tools are offered" in got.json()["error"]["message"]
    ((said, why),) = asked(url, "chat/completions", {**body, "tool_choice": "none"})
    assert (said in ("yes", "no"), why) == (True, "stop")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"ignore_eos": True}, "[ignore_eos] is set, but the answer is constrained"),
        ({"echo": True, "logprobs": 1}, "[echo] scores a prompt, but the answer is constrained"),
    ],
)
def test_what_a_text_completion_cannot_have_beside_a_form(url: str, body: dict, said: str) -> None:
    asked_for = {"model": "bytes", "prompt": "x", "guided_choice": ["a"], **body}
    got = httpx.post(f"{url}/v1/completions", json=asked_for)
    assert (got.status_code, said in got.json()["error"]["message"]) == (400, True)


def test_a_file_of_requests_has_them_too(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"custom_id": way, "method": "POST", "url": "/v1/chat/completions", "body": {"model": "merged", **form}}
        for way, (form, _) in WAYS.items()
    ]
    for row in rows:
        row["body"] |= {"messages": ASKED, "max_tokens": 60, "seed": 3, "temperature": 1}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("batch", folder, tmp_path / "in.jsonl", tmp_path / "out.jsonl").exit_code == 0
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        row = json.loads(line)
        (choice,) = row["response"]["body"]["choices"]
        fits = re.fullmatch(WAYS[row["custom_id"]][1], choice["message"]["content"])
        assert fits or choice["finish_reason"] == "length"


QUESTIONS = ("What is 47 plus 85?", "Write 149 in Roman numerals", "What day of the week was 4 July 1976?")


@pytest.mark.parametrize("guesses", [0, 7])
def test_the_demos_answers_are_those_without_a_form_where_they_fit_it(guesses: int) -> None:
    with Coterie.open("demo", options(speculate=guesses)) as coterie:
        for question in QUESTIONS:
            free = coterie.ask(question)
            first = free.text.split("\n")[0]
            forms = [
                Constraint.regex(r"(?s:.*)"),
                Constraint.regex(re.escape(first).replace("\\ ", " ") + r"\n(?s:.*)"),
                Constraint.choice([free.text, free.text + " or so", "something else"]),
                Constraint.grammar(r"root ::= line+" + '\nline ::= [^\\n]+ "\\n"?'),
            ]
            for form in forms:
                held = coterie.ask(Query((Message("user", question),), free.expert, form=form))
                assert (held.text, held.finish_reason) == (free.text, "stop")


def test_the_demos_answers_match_whatever_is_drawn() -> None:
    with Coterie.open("demo") as coterie:
        for seed in range(4):
            query = Query((Message("user", QUESTIONS[0]),), "arithmetic", PartialSampling(temperature=1, seed=seed))
            for form, pattern in (
                (Constraint.regex("[A-Z]{3}(-[0-9]{2}){2}"), "[A-Z]{3}(-[0-9]{2}){2}"),
                (Constraint.choice(TEXTS), "|".join(map(re.escape, TEXTS))),
            ):
                answer = coterie.ask(replace(query, form=form))
                assert re.fullmatch(pattern, answer.text), answer.text
                assert answer.finish_reason == "stop"
        with pytest.raises(RequestError, match=r"\[form\] is no regular expression"):
            coterie.ask(replace(query, form=Constraint.regex("(")))

"""Calls without the marks of their form: plain and as blocks of code, cut into pieces in every way; what stays text."""

from __future__ import annotations

import json
import random

import pytest

from coterie.checkpoint.calls import Call, CallText
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.unmarked import UnmarkedText

TOOLS = ("add", "look_up")
DEEP = 100_000  # brackets, beyond what Python's reader follows
ADD = Call("add", '{"a": 1, "b": "x"}')
LOOK = Call("look_up", '{"q": "} ``` {\\"é"}')
PLAIN = '{"name": "add", "arguments": {"a": 1, "b": "x"}}'
OTHER = json.dumps({"name": "look_up", "arguments": {"q": '} ``` {"é'}}, ensure_ascii=False)
WIDE = '{\n  "name": "add",\n  "arguments": {\n    "a": 1,\n    "b": "x"\n  }\n}'
MARKED = f"<tool_call>\n{PLAIN}\n</tool_call>"
CASES = [
    (PLAIN, [ADD]),
    ("\n " + PLAIN + "\n", [ADD]),
    (f"```json\n{WIDE}\n```", [ADD]),
    (f"```\n{PLAIN}\n```\n", [ADD]),
    (f"```json\n{OTHER}\n``", [LOOK]),
    (f"{PLAIN}\n{OTHER}", [ADD, LOOK]),
    (f"```json\n{PLAIN}\n{OTHER}\n```", [ADD, LOOK]),
    (f"```json\n{PLAIN}\n```\n```json\n{OTHER}\n```", [ADD, LOOK]),
    (f"{PLAIN}\n{MARKED}", [ADD, ADD]),
    ("{" + PLAIN + "}", [ADD]),
    ("```json\n{" + WIDE + "}\n```\n{" + OTHER + "}", [ADD, LOOK]),
    ("{" + PLAIN, ["{" + PLAIN]),
    ("{{" + PLAIN + "}}", ["{{" + PLAIN + "}}"]),
    (f"{PLAIN}\nThat adds.", [ADD, "That adds."]),
    (f"```json\n{PLAIN}\n```\nThat adds.", [ADD, "That adds."]),
    (f"```json\n{PLAIN}\n``` \t\nThat adds.", [ADD, "That adds."]),
    (f"{PLAIN}\n```python\nx = 1\n```", [ADD, "```python\nx = 1\n```"]),
    (MARKED, [ADD]),
    ("So:\n" + MARKED, ["So:", ADD]),
    ("So:\n" + PLAIN, ["So:\n" + PLAIN]),
    (PLAIN.replace("add", "rm"), [PLAIN.replace("add", "rm")]),
    (f"```python\n{PLAIN}\n```", [f"```python\n{PLAIN}\n```"]),
    ('{"name": "add", "argu', ['{"name": "add", "argu']),
    (PLAIN[:-1], [PLAIN[:-1]]),
    ('{"name": "add", "age": 3}', ['{"name": "add", "age": 3}']),
    ('{"name": "add", "arguments": {"a": NaN}}', ['{"name": "add", "arguments": {"a": NaN}}']),
    ('{"name": "add", "arguments": {"a" 1}}', ['{"name": "add", "arguments": {"a" 1}}']),
    (f"{PLAIN}\n" + PLAIN[:-4], [ADD, PLAIN[:-4]]),
    ("", []),
    ("`", ["`"]),
    ("no call", ["no call"]),
    ("\n" * 3000 + "x", ["\n" * 3000 + "x"]),
]


def found_in(pieces: list[str], several: bool = True) -> list[str | Call]:
    reader = UnmarkedText(CallText(FORMS["hermes"], TOOLS), TOOLS, several)
    found: list[str | Call] = []
    for one in [*(one for piece in pieces for one in reader.push(piece)), *reader.flush()]:
        if isinstance(one, str) and found and isinstance(found[-1], str):
            found[-1] += one
        else:
            assert isinstance(one, str | Call)
            found.append(one)
    assert reader.num_calls == sum(isinstance(one, Call) for one in found)
    return found


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_calls_without_marks_are_found_however_the_text_is_cut(text, expected):
    draw = random.Random(len(text))
    assert found_in([text]) == expected
    assert found_in(list(text)) == expected
    for _ in range(20):
        cuts = sorted(draw.choices(range(len(text) + 1), k=3))
        assert found_in([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == expected


def test_only_one_is_read_where_there_may_be_one():
    assert found_in(list(f"{PLAIN}\n{OTHER}"), several=False) == [ADD, OTHER]
    assert found_in([f"{PLAIN}\n{OTHER}"], several=False) == [ADD, OTHER]
    assert found_in(list(f"```json\n{PLAIN}\n```"), several=False) == [ADD]


@pytest.mark.parametrize("text", ["Hello", '{"answer": 4}', '{"name": "Anna", "age": 3}', "```python\nx = 1"])
def test_what_cannot_become_a_call_is_given_out_at_once(text):
    reader = UnmarkedText(CallText(FORMS["hermes"], TOOLS), TOOLS)
    shown = next(end for end in range(1, len(text) + 1) if reader.push(text[end - 1]))
    assert shown <= len('{"name": "An')


@pytest.mark.parametrize("text", [PLAIN[:-4].replace("add", "rm"), "\n" * 3000])
def test_nothing_is_held_back_in_vain(text):
    """Of a tool that was not offered, or more blanks than a model writes before a call."""
    assert UnmarkedText(CallText(FORMS["hermes"], TOOLS), TOOLS).push(text) == [text]


def test_a_name_may_have_any_letters():
    reader = UnmarkedText(CallText(FORMS["hermes"], ("größe",)), ("größe",))
    *begun, last = (reader.push(letter) for letter in '{"name": "größe", "arguments": {}}')
    assert (any(begun), last) == (False, [Call("größe", "{}")])


def test_a_call_nested_deeper_than_json_is_read_is_text():
    deep = '{"name": "add", "arguments": {"a": ' + "[" * DEEP + "]" * DEEP + "}}"
    assert found_in([deep]) == [deep]


def test_a_call_is_given_out_when_it_is_whole():
    reader = UnmarkedText(CallText(FORMS["hermes"], TOOLS), TOOLS)
    assert reader.push(PLAIN[:-1]) == []
    assert not reader.cut
    assert reader.push("}") == [ADD]

"""Blocks of calls are read when they may have come to their end, and what is malformed costs nobody an answer."""

from __future__ import annotations

import itertools
import json

import pytest

from coterie.checkpoint import calls
from coterie.checkpoint.calls import Call, CallText
from coterie.checkpoint.constrained import ConstrainedCallText
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.nesting import Nested

# What stands around a text of one call, in each kind of form.
AROUND = {
    "hermes": ('<tool_call>\n{"name": "w", "arguments": {"a": "', '"}}\n</tool_call>'),
    "mistral": ('[TOOL_CALLS] [{"name": "w", "arguments": {"a": "', '"}}]'),
    "mistral-named": ('[TOOL_CALLS]w[ARGS]{"a": "', '"}'),
    "functions": ("<tool_call>\n<function=w>\n<parameter=a>\n", "\n</parameter>\n</function>\n</tool_call>"),
    "llama": ('{"name": "w", "parameters": {"a": "', '"}}'),
}
TOOLS = {"w": {"type": "object", "properties": {"a": {"type": "string"}}}}


@pytest.mark.parametrize("form", AROUND)
@pytest.mark.parametrize("word", ["so ", "} ]", "</tool_call> " * 2])
def test_a_long_call_is_read_a_few_times(form: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times, read = itertools.count(), calls._read
    monkeypatch.setattr(calls, "_read", lambda *given: (next(times), read(*given))[1])
    before, after = AROUND[form]
    reader, found = CallText(FORMS[form], TOOLS), []
    for piece in [*before, *[word] * 2000, *after, "Done."]:
        found += reader.push(piece)
    (call, *text) = [*found, *reader.flush()]
    assert isinstance(call, Call)
    assert json.loads(call.arguments) == {"a": word * 2000}
    assert "".join(map(str, text)) == "Done."
    assert next(times) < len(before) + len(after) + 10


def test_blanks_without_end_are_text_at_last() -> None:
    reader = CallText(FORMS["hermes"], TOOLS)
    given = ["".join(map(str, reader.push(" \n"))) for _ in range(3000)]
    assert max(map(len, given)) < 2000
    assert "".join([*given, *map(str, reader.flush())]) == " \n" * 3000


@pytest.mark.parametrize("form", [form for form in AROUND if form != "functions"])
@pytest.mark.parametrize("value", ["7" * 5000, "[" * 100_000, "NaN"], ids=["digits", "brackets", "NaN"])
def test_arguments_that_no_reader_takes_are_text(form: str, value: str) -> None:
    before, after = (part.replace('"a": "', '"a": ').removeprefix('"') for part in AROUND[form])
    said = before + value + after
    for pieces in ([said], [said[:4400], said[4400:]]):
        reader = CallText(FORMS[form], TOOLS)
        found = [*(item for piece in pieces for item in reader.push(piece)), *reader.flush()]
        assert "".join(map(str, found)) == said


@pytest.mark.parametrize("name", ['"\\q"', '"\n"', '"unknown"'])
def test_a_mark_in_a_text_that_is_held_is_no_call(name: str) -> None:
    said = f'<tool_call>\n{{"name": {name}, "arguments": {{}}}}\n</tool_call>'
    reader = ConstrainedCallText(FORMS["hermes"], TOOLS)
    assert "".join(map(str, [*reader.push(said), *reader.flush()])) == said


@pytest.mark.parametrize("text", ['{"a": "}\\"]", "b": [{}, "{"]}', '[{"a": 2}, []]'])
def test_a_value_ends_where_it_does(text: str) -> None:
    value = Nested()
    assert sum(value.push(letter) for letter in text) == len(text)
    assert value.whole
    for at in range(1, len(text)):
        value = Nested()
        assert (value.push(text[:at]), value.whole) == (at, False)
        assert (value.push(text[at:] + " more"), value.whole) == (len(text) - at, True)

"""Which form of calls a template has: that by which the call is read that it writes, whatever its words say."""

from __future__ import annotations

import json

import pytest

from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.shown_calls import shown_calls
from coterie.core.errors import RequestError

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
HEAD = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
EACH = "{% for c in m.tool_calls %}{% set c = c.function %}"


def template(calls: str, words: str = "") -> ChatTemplate:
    return ChatTemplate(f"{words}{HEAD}{calls}{TAIL}", {}, "t")


def of_each(text: str) -> str:
    return f"{EACH}{text}{{% endfor %}}"


HERMES = """<tool_call>{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}</tool_call>"""
PLAIN = """{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}"""
AS_TEXT = """<tool_call>{"name": "{{ c.name }}", "arguments": {{ c.arguments }}}</tool_call>"""
JOINED = """{{ '<tool_call>{"name": "' + c.name + '", "arguments": ' + c.arguments + '}</tool_call>' }}"""
EITHER = AS_TEXT.replace("c.arguments", "c.arguments if c.arguments is string else c.arguments | tojson")
PAIRS = """<tool_call>{{ c.name }}
{% for k, v in c.arguments.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v }}</arg_value>
{% endfor %}</tool_call>"""
LISTED = "{% if m.tool_calls %}<TOOLCALL>[" + of_each(PLAIN + "{{ ', ' if not loop.last }}") + "]</TOOLCALL>{% endif %}"
ONE = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"


@pytest.mark.parametrize(
    ("calls", "words", "form", "as_text"),
    [
        (of_each(HERMES), "", "hermes", False),
        (of_each(HERMES), "[TOOL_CALLS]", "hermes", False),
        (of_each(AS_TEXT), "", "hermes", True),
        (of_each(JOINED), "", "hermes", True),
        (of_each(PAIRS), "", "pairs", False),  # values that are printed as Python prints them
        (LISTED, "", "nemotron", False),
        (ONE + of_each(HERMES), "", "hermes", False),
        (ONE + LISTED, "<tool_call>", "nemotron", False),
        (of_each(EITHER), "", "hermes", False),  # what is taken both ways is given as it is
        (of_each("<call>" + PLAIN), "<tool_call>", None, False),
        ("", "<tool_call>", "hermes", False),
        ("{{ m.tool_calls.append(1) }}", "<tool_call>", "hermes", False),
        ("", "", None, False),
        ("<tool_call>\n" + of_each(PLAIN + "\n"), "", None, False),  # several objects in one block
    ],
)
def test_a_form_is_what_is_written(calls: str, words: str, form: str | None, as_text: bool) -> None:
    made = template(calls, words)
    assert made.form is (None if form is None else FORMS[form])
    found = shown_calls(f"{words}{HEAD}{calls}{TAIL}", made._text)
    assert found.as_text is as_text


def test_a_call_may_begin_as_what_an_answer_begins_with_does() -> None:
    """Here both begin with `<t`."""
    source = f"{HEAD}{of_each(PAIRS)}{TAIL}".replace("<assistant>", "<assistant><think>")
    assert ChatTemplate(f"[TOOL_CALLS]{source}", {}, "t").form is FORMS["pairs"]


def test_a_template_that_wants_texts_gets_arguments_as_texts() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": "é", "b": [1]}}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    for source in (AS_TEXT, JOINED, HERMES):
        said = template(of_each(source)).render(messages, False, [TOOL])
        inside = said.rpartition("<tool_call>")[2].removesuffix("</tool_call>")
        assert json.loads(inside)["arguments"] == {"a": "é", "b": [1]}
    assert call["function"]["arguments"] == {"a": "é", "b": [1]}  # as it was given


def test_a_template_without_tools_has_no_form() -> None:
    made = ChatTemplate("<tool_call>{{ messages[0].content }}", {}, "t")
    assert (made.takes_tools, made.form) == (False, None)


def test_tools_have_another_name_in_some_templates() -> None:
    source = f"{HEAD}{of_each(HERMES)}{TAIL}".replace("if tools", "if xml_tools").replace("{ tools", "{ xml_tools")
    made = ChatTemplate(source, {}, "t")
    assert made.form is FORMS["hermes"]
    assert '"name": "add"' in made.render([{"role": "user", "content": "x"}], True, [TOOL])


def test_what_a_template_refuses_is_asked_once() -> None:
    asked = []

    def render(*given: object) -> str:
        asked.append(given)
        raise RequestError("t", "no", "stop")

    assert shown_calls("<tool_call>", render).form is FORMS["hermes"]
    assert len(asked) <= 4

"""Calls of tools in text: every form, cut into pieces in every way, and what stays text."""

from __future__ import annotations

import json
import random

import pytest

from coterie.checkpoint.calls import Call, CallText
from coterie.checkpoint.forms import FORMS, form_of

TOOLS = ("add", "look_up")


def call(name: str = "add", arguments: object = None, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: {"a": 1, "b": "x"} if arguments is None else arguments})


ADD = Call("add", '{"a": 1, "b": "x"}')
LOOK = Call("look_up", '{"q": "</tool_call> {é} \\" [TOOL_CALLS]"}')
QUERY = {"q": '</tool_call> {é} " [TOOL_CALLS]'}


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in calls)


def llama(*arguments: object) -> str:
    return "; ".join(call(arguments=each, key="parameters") for each in arguments)


# What Python's reader takes, and no client's does; a name that is no text.
NOT_JSON = [f'{{"name": "add", "arguments": {{"a": {value}}}}}' for value in ("NaN", "1e999", '"\\ud800"')]
NOT_JSON += ['{"name": ["add"], "arguments": {}}']
CASES = {
    "hermes": [
        (hermes(call()), [ADD]),
        ("Let me see.\n\n" + hermes(call(), call("look_up", QUERY)), ["Let me see.", ADD, LOOK]),
        (f"<tool_call>{call()}</tool_call> done", [ADD, " done"]),
        (f"<tool_call>\n{call()}\n</tool_", [ADD]),
        (f"<tool_call>\n{call()}", [ADD]),
        ("no call", ["no call"]),
        ("  1 < 2 <tool", ["  1 < 2 <tool"]),
        ("ends in space \n", ["ends in space \n"]),
        (hermes(call("rm")), [hermes(call("rm"))]),
        ("<tool_call>\n{name: add}\n</tool_call>", ["<tool_call>\n{name: add}\n</tool_call>"]),
        ("So:\n" + hermes("{add}"), ["So:\n<tool_call>\n{add}\n</tool_call>"]),
        (hermes(call()) + "\n", [ADD]),
        (hermes("{add}", call()), ["<tool_call>\n{add}\n</tool_call>", ADD]),
        ("<tool_call>add</tool_call>", ["<tool_call>add</tool_call>"]),
        (hermes(call(arguments="x")), [hermes(call(arguments="x"))]),
        ('<tool_call>\n{"name": "add", "argu', ['<tool_call>\n{"name": "add", "argu']),
        (call(), [call()]),
        *((hermes(said), [hermes(said)]) for said in NOT_JSON),
        ("", []),
    ],
    "mistral": [
        (f"[TOOL_CALLS][{call()}, {call('look_up', QUERY)}]", [ADD, LOOK]),
        (f"So: [TOOL_CALLS] [{call()}]", ["So:", ADD]),
        (f"[TOOL_CALLS] {call()}", [ADD]),
        (f"[TOOL_CALLS] [{call()}", [f"[TOOL_CALLS] [{call()}"]),
        (f"[TOOL_CALLS] [{call()}, 3]", [f"[TOOL_CALLS] [{call()}, 3]"]),
        ("[TOOL_CALLS] []", ["[TOOL_CALLS] []"]),
        ("[TOOLS] are [here", ["[TOOLS] are [here"]),
    ],
    "llama": [
        (llama(None), [ADD]),
        (f"\n\n{llama(None, None)}", [ADD, ADD]),
        (f"<|python_tag|>{llama(None)}", [ADD]),
        (f"<|python_tag|>{llama(None)}; <|python_tag|>{llama(None)}\n", [ADD, ADD]),
        (f"It is {llama(None)}", [f"It is {llama(None)}"]),
        ('{"name": "Bob", "parameters": {}}', ['{"name": "Bob", "parameters": {}}']),
        (f'{{"answer": 3}} {llama(None)}', [f'{{"answer": 3}} {llama(None)}']),
        (llama(None)[:-1], [llama(None)[:-1]]),
        ("<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
        (f"{llama(None)} and more", [ADD, " and more"]),
    ],
}
ROWS = [(name, text, wanted) for name, rows in CASES.items() for text, wanted in rows]


def found(form: str, pieces: list[str]) -> list[str | Call]:
    """What comes out, texts that follow each other joined."""
    reader, out = CallText(FORMS[form], TOOLS), []
    for item in [*(item for piece in pieces for item in reader.push(piece)), *reader.flush()]:
        assert item != ""
        if out and isinstance(item, str) and isinstance(out[-1], str):
            out[-1] += item
        else:
            out.append(item)
    assert reader.num_calls == sum(isinstance(item, Call) for item in out)
    return out


@pytest.mark.parametrize(("form", "text", "wanted"), ROWS)
def test_calls_are_found_however_the_text_is_cut(form: str, text: str, wanted: list) -> None:
    assert found(form, [text]) == wanted
    assert found(form, list(text)) == wanted
    draw = random.Random(5)
    for _ in range(20):
        cuts = sorted(draw.sample(range(len(text) + 1), min(len(text), 4)))
        assert found(form, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == wanted


def test_text_is_given_out_as_it_comes_but_for_what_may_begin_a_call() -> None:
    reader = CallText(FORMS["hermes"], TOOLS)
    assert reader.push("Let me see. ") == ["Let me see."]
    assert reader.push("<tool") == []
    assert reader.push("box> a") == [" <toolbox> a"]
    assert reader.push("\n<tool_call>\n") == []
    assert reader.push(call()) == []
    assert reader.push("\n</tool_call>") == [ADD]
    assert reader.push(" so") == [" so"]


def test_arguments_nested_beyond_reason_stay_text() -> None:
    deep = "<tool_call>" + "[" * 100_000
    assert found("hermes", [deep]) == [deep]


def test_a_template_shows_its_form() -> None:
    assert form_of("{{ '<tool_call>' }}") is FORMS["hermes"]
    assert form_of('{{ "[TOOL_CALLS] [" }}') is FORMS["mistral"]
    assert form_of("""{{ '{"name": function name, "parameters": a dictionary}' }}""") is FORMS["llama"]
    shown = {
        "functions": "<tool_call>\n<function=name>",
        "seed": "<seed:tool_call>\n<function=name>",
        "invoked": "set begin = '<minimax:tool_call>'",
        "pairs": "<tool_call>{function-name}<arg_key>",
        "mistral-named": "[TOOL_CALLS]name[ARGS]",
        "granite": "<|tool_call|>",
        "nemotron": "<TOOLCALL>[{name, arguments}]</TOOLCALL>",
        "apriel": "<tool_calls>[{name, arguments}]</tool_calls>",
        "apertus": "set begin = '<|tools_prefix|>'",
        "lfm": "List of tools: [",
        "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name\n```json\n",
        "deepseek-plain": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>",
        "gemma": "<|tool_call>call:",
    }
    for name, template in shown.items():
        assert form_of(template) is FORMS[name]
    assert form_of("{{ messages }}") is None

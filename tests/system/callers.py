"""Experts whose weights make them call tools, each in the form of its template, and what clients send and make of it.

Knows nothing about what is asked of them.
"""

from __future__ import annotations

from pathlib import Path

import openai
from tests.model.test_tool_templates import FUNCTIONS, HERMES, LLAMA, MISTRAL, TOOLS
from tests.system.scripted import write_scripted
from tests.system.tiny import write_expert

ADD = '{"a": 2, "b": "é"}'
SAID = {
    "hermes": ["Let me", " see.\n", "<tool", "_call>\n", '{"name": "add", ', '"arguments": ', ADD, "}\n</tool_call>"],
    "llama": ['{"name": "add"', ', "parameters": ', ADD, "}; ", '{"name": "now", ', '"parameters": {}}'],
    "mistral": ["[TOOL_CALLS]", ' [{"name": "add", ', '"arguments": ', ADD, '}, {"name": "now", ', '"arguments": {}}]'],
    "functions": [
        "<tool_call>\n<function=add>\n",
        "<parameter=a>",
        "\n2\n</parameter>\n<parameter=b>\né",
        "\n</parameter>",
        "\n</function>\n</tool_call>",
        "\n<tool_call>\n<function=now>\n</function>",
        "\n</tool_call> ",
    ],
    "unmarked": ["```json\n", '{"name": "add", ', '"arguments": ', ADD, "}\n```"],
    "wrong": ["So:\n", "<tool_call>\n", '{"name": "rm", "arguments": {}}', "\n</tool_call>", "\nthat is all"],
}
TEMPLATES = {"hermes": HERMES, "functions": FUNCTIONS, "llama": LLAMA, "mistral": MISTRAL}
TEMPLATES |= {"unmarked": HERMES, "wrong": HERMES}
SET = {
    "type": "object",
    "properties": {"a": {"enum": [3, 44]}, "b": {"enum": ["é", "x"]}},
    "additionalProperties": False,
}
SET |= {"required": ["a", "b"]}
HELD = [{"type": "function", "function": {"name": "add", "parameters": SET}}, TOOLS[1]]
HELD += [{"type": "function", "function": {"name": "other", "parameters": {"maxProperties": 0}}}]
ONE = {"type": "function", "function": {"name": "add"}}
SOME = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ONE]}}
QUESTION = {"role": "user", "content": "What is 2 + 3?"}


def write_callers(root: Path) -> Path:
    """A folder of them, with one whose form is not read and one without a template."""
    for name, pieces in SAID.items():
        write_scripted(root / name, pieces, TEMPLATES[name], special=("[TOOL_CALLS]",))
    write_scripted(root / "other", ["hello"], HERMES.replace("tool_call>", "call>"))
    write_expert(root / "plain", 1)
    return root


def ask(client: openai.OpenAI, model: str, **options):
    return client.chat.completions.create(**{"model": model, "messages": [QUESTION], "tools": TOOLS, **options})


def assembled(events, count: int = 1) -> list[dict]:
    """What a client makes of a stream: each choice's content, calls and reason."""
    found = [{"content": "", "calls": {}, "reason": None} for _ in range(count)]
    for event in events:
        for choice in event.choices:
            said = found[choice.index]
            assert said["reason"] is None
            said["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.id is None:  # more arguments of the last one
                    assert (call.index, call.type, call.function.name) == (len(said["calls"]) - 1, None, None)
                    said["calls"][call.index].function.arguments += call.function.arguments
                    continue
                assert call.index == len(said["calls"])
                said["calls"][call.index] = call
            said["reason"] = choice.finish_reason
    return found

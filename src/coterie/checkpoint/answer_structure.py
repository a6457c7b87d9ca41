"""The grammar of a whole answer under constrained decoding: its form, with reasoning before it or channels around it.

    marks       <think>Let me see.</think>  {"answer": 4}
    channels    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>{"answer": 4}

A form is a JSON schema, a constraint (constraint.py), or tool calls (constrained.py).
Knows nothing about tokens, special ones aside.
Source: github.com/guidance-ai/llguidance, docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.calls import Calling
from coterie.checkpoint.channels import CHANNEL, CONSTRAIN, END, MESSAGE, ROLE, START, TO
from coterie.checkpoint.constrained import call_grammar
from coterie.checkpoint.forms import Form
from coterie.checkpoint.tagged import marked
from coterie.checkpoint.thoughts import Marks

Special = Callable[[str], "int | None"]  # the id of a token that is special, by its text
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerStructure:
    """The structure of an expert's answers: with reasoning between `marks`, in channels, or neither.

    `is_opened`: the prompt ends with the opening mark.
    """

    marks: Marks | None = None
    is_opened: bool = False
    channels: bool = False

    @property
    def plain(self) -> bool:
        """True if an answer consists only of its form."""
        return self.marks is None and not self.channels

    def answer(self, form: str, special: Special) -> str:
        """The grammar, in llguidance's Lark, of answers in a form, which is itself in Lark: `%json ...` or another."""
        if self.channels:
            return _in_channels({}, Calling(), special, form)
        return self._after_reasoning(f"start: {form}", special)

    def calls(
        self, form: Form, arguments: Mapping[str, Schema], calling: Calling, special: Special, answer: Schema | None
    ) -> str:
        """The grammar of answers that call tools; arguments and errors as in `call_grammar`."""
        if self.channels:
            said = "ANYTHING" if answer is None else f"%json {json.dumps(answer)}"
            return _in_channels(arguments, calling, special, said)
        return self._after_reasoning(call_grammar(form, arguments, calling, special, answer), special)

    def _after_reasoning(self, lark: str, special: Special) -> str:
        if self.marks is None:
            return lark
        closing = special(self.marks.closing)
        opened = "" if self.is_opened else f"{marked(self.marks.opening, special)} "
        rules = [
            f"start: {opened}thought BLANKS said" + ("" if self.is_opened else " | said"),
            f"thought{'[lazy]' if closing is None else ''}: ANYTHING {marked(self.marks.closing, special)}",
            "said" + _but(lark.removeprefix("start"), "" if self.is_opened else self.marks.opening),
            r"ANYTHING: /(?s:.*)/",
            r"BLANKS: /[ \r\n]{0,4}/",
        ]
        return "\n".join(rules)


def _in_channels(arguments: Mapping[str, Schema], calling: Calling, special: Special, form: str) -> str:
    """The grammar of answers in channels: optional reasoning, then one tool call or the final text.

    `form`: the form of the final text, in Lark. A call ends an answer, so there is at most one.
    """
    channel, message, constrain, end, start = (
        marked(mark, special) for mark in (CHANNEL, MESSAGE, CONSTRAIN, END, START)
    )
    calls = [f"call_{number}" for number in range(len(arguments))]
    rules = [f"start: (thought {end} {start} {json.dumps(ROLE)})? said"]
    rules.append(f'thought: {channel} "analysis" {message} ANYTHING')
    rules.append("said: " + " | ".join([*calls, *(() if calling.required else ("final",))]))
    for number, (name, schema) in enumerate(arguments.items()):
        to = json.dumps(f"commentary {TO}{name} ", ensure_ascii=False)
        rules.append(f'call_{number}: {channel} {to} {constrain} "json" {message} arguments_{number}')
        rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
    rules += [f'final: {channel} "final" {message} answer', f"answer: {form}", "ANYTHING: /(?s:.*)/"]
    return "\n".join(rules)


def _but(lark: str, mark: str) -> str:
    """A grammar whose free text, the terminal TEXT, cannot begin with `mark`, which always opens reasoning.

    Otherwise the mark of a call within reasoning could be parsed as a call.
    """
    apart = f" & ~/{re.escape(mark)}(?s:.*)/" if mark else ""
    return re.sub(r"^TEXT: .*$", lambda found: found[0] + apart, lark, flags=re.MULTILINE)

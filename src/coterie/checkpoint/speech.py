"""Speech: the grammar of all that an answer may have around its form, a thought before it and channels.

    marks       <think>Let me see.</think>  {"answer": 4}
    channels    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>{"answer": 4}

A form is a JSON schema, a constraint (constraint.py), or that of calls (constrained.py). Knows nothing about tokens
but special ones.
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
class Speech:
    """How an expert's answers are built: with thoughts between `marks`, which its prompt may have opened, in channels,
    or with neither.
    """

    marks: Marks | None = None
    is_opened: bool = False
    channels: bool = False

    @property
    def plain(self) -> bool:
        """True when an answer is nothing but its form."""
        return self.marks is None and not self.channels

    def answer(self, form: str, special: Special) -> str:
        """The grammar, in llguidance's Lark, of answers in a form, which is in Lark too: `%json ...` or another."""
        if self.channels:
            return _in_channels({}, Calling(), special, form)
        return self._behind_thought(f"start: {form}", special)

    def calls(
        self, form: Form, arguments: Mapping[str, Schema], calling: Calling, special: Special, answer: Schema | None
    ) -> str:
        """The same of answers that call tools, as `call_grammar` has it. Raises what that does."""
        if self.channels:
            said = "ANYTHING" if answer is None else f"%json {json.dumps(answer)}"
            return _in_channels(arguments, calling, special, said)
        return self._behind_thought(call_grammar(form, arguments, calling, special, answer), special)

    def _behind_thought(self, lark: str, special: Special) -> str:
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
    """The grammar of answers in channels: a thought, then a call of one of some tools, or what is said at last.

    `form`: that of what is said, in Lark. A call ends an answer, so there is one.
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
    """A grammar whose free text, the terminal TEXT, does not begin with a mark: what does is a thought, whatever else.

    Else letters of a thought that spell the mark of a call would be one.
    """
    apart = f" & ~/{re.escape(mark)}(?s:.*)/" if mark else ""
    return re.sub(r"^TEXT: .*$", lambda found: found[0] + apart, lark, flags=re.MULTILINE)

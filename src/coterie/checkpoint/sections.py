"""Tool calls as DeepSeek's models write them: a block of calls, each a name and a JSON object in marks of its own.

    <｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>         V3.1
    <｜tool▁call▁begin｜>function<｜tool▁sep｜>add                          V3 and R1; further calls on new lines
    ```json
    {"a": 1}
    ```<｜tool▁call▁end｜>

Knows nothing about the block's marks, or tokens. Source: the chat templates of DeepSeek-R1, V3 and V3.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from coterie.checkpoint.tagged import Layout, Read, Schema, Special, literal, marked

_MARK = re.compile(r"(<｜[^<>｜]*｜>)")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Sections(Layout):
    """The template of a call, with NAME and ARGUMENTS as placeholders, and the text between two calls."""

    call: str
    between: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks within a call that may be special tokens."""
        return tuple(_MARK.findall(self.call))

    def read(self, text: str, tools: Mapping[str, Schema]) -> list[Read]:
        """All calls of a block; none if it is malformed. White space around marks and names may vary."""
        found, at = list[Read](), 0
        while at < len(text):
            head = self._head.match(text, at)
            if head is None:
                return []
            try:
                value, at = _DECODER.raw_decode(text, head.end())
            except (ValueError, RecursionError):
                return []
            end = self._end.match(text, at)
            if end is None or not isinstance(value, dict):
                return []
            at = end.end()
            found.append((head["name"], value))
        return found

    def rules(self, number: int, name: str, schema: Schema, special: Special) -> Iterator[str]:
        """The grammar of a call, in llguidance's Lark, as the rule `call_NUMBER`."""
        before, behind = self.call.replace("NAME", name).split("ARGUMENTS")
        yield f"call_{number}: {_spelled(before, special)} arguments_{number} {_spelled(behind, special)}"
        yield f"arguments_{number}: %json {json.dumps(schema)}"

    @cached_property
    def _head(self) -> re.Pattern[str]:
        before, after = self.call.partition("ARGUMENTS")[0].split("NAME")
        return re.compile(rf"{_loose(before)}(?P<name>[^\s<>\"]+){_loose(after)}")

    @cached_property
    def _end(self) -> re.Pattern[str]:
        return re.compile(_loose(self.call.partition("ARGUMENTS")[2]))


def _spelled(text: str, special: Special) -> str:
    """Marks and the text between them, in llguidance's Lark."""
    parts = [part for part in _MARK.split(text) if part]
    return " ".join([marked(part, special) if _MARK.fullmatch(part) else literal(part) for part in parts])


def _loose(text: str) -> str:
    """A pattern for a text, allowing any white space around its marks and words."""
    return r"\s*".join(["", *(re.escape(word) for part in _MARK.split(text) for word in part.split()), ""])

"""Calls as DeepSeek's models write them: each in marks of its own within a block's, a name and a JSON object.

    <｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>         V3.1
    <｜tool▁call▁begin｜>function<｜tool▁sep｜>add                          V3 and R1, several on lines of their own
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
    """A call, in which NAME and ARGUMENTS stand for what is in it, and what stands between two."""

    call: str
    between: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """What is in a call and may be a special token."""
        return tuple(_MARK.findall(self.call))

    def read(self, text: str, tools: Mapping[str, Schema]) -> list[Read]:
        """The calls that are all of a block; none where it is malformed. Blanks around texts may be any."""
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
    """Marks and what is between them, as llguidance's Lark has it."""
    parts = [part for part in _MARK.split(text) if part]
    return " ".join([marked(part, special) if _MARK.fullmatch(part) else literal(part) for part in parts])


def _loose(text: str) -> str:
    """A pattern of a text whose marks and words may have any blanks around them."""
    return r"\s*".join(["", *(re.escape(word) for part in _MARK.split(text) for word in part.split()), ""])

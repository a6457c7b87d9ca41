"""Tool calls as models write them, found in streamed text.

    pieces    "Let me see.\\n<tool"  "_call>{"name": "add", "  "arguments": {}}</tool_call>"
    found     "Let me see."                                  Call("add", "{}")

Anything but a complete call of an offered tool stays text.
Knows nothing about template syntax, tokens or requests.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from coterie.checkpoint.forms import Form
from coterie.checkpoint.nesting import BLANKS, MAX_BLANKS
from coterie.checkpoint.quoted import Quoted
from coterie.checkpoint.tagged import Named, Read, Tags
from coterie.core.text import overlap

_DECODER = json.JSONDecoder()
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class More:
    """A further piece of the last call's arguments."""

    arguments: str


Found: TypeAlias = "str | Call | More"
Tools: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Calling:
    """What a request demands of tool calls; by default nothing.

    `required`: the answer must consist of calls, at least one. `several`: there may be more than one. `only`: names of
    the tools that may be called; empty: all that are offered.
    """

    required: bool = False
    several: bool = True
    only: tuple[str, ...] = ()


class CallReader(Protocol):
    """Separates tool calls from text in one answer, as it streams."""

    @property
    def num_calls(self) -> int:
        """The number of calls so far."""

    @property
    def cut(self) -> bool:
        """True while the arguments of a call that was returned are incomplete."""

    def push(self, piece: str) -> list[Found]:
        """Take the next piece of text and return what is certain now."""

    def flush(self) -> list[Found]:
        """Return the rest: the answer has ended."""


class CallText:
    """Finds the calls in one answer. Text is returned as it comes, except for what may become the beginning of a call.

    White space before a call or after the last one is dropped. `tools`: their names, or a mapping to the schemas of
    their arguments, which forms need that do not distinguish strings from numbers. `continues`: the answer continues
    earlier text, so it cannot begin with a bare call.
    """

    def __init__(self, form: Form, tools: Collection[str], continues: bool = False) -> None:
        self._form = form
        self._tools = tools if isinstance(tools, Mapping) else dict.fromkeys(tools, _NOTHING)
        self._heads = tuple([form.head.replace("NAME", name) for name in self._tools]) if form.head else ()
        self._held = ""
        self._inside = False  # the held text begins with a possible call
        self._parse_trigger = form.parse_trigger()  # when to parse that again
        self._said = continues  # there was text, so a bare call can no longer begin
        self.num_calls = 0

    @property
    def cut(self) -> bool:
        """Always False: calls are returned only when complete."""
        return False

    def push(self, piece: str) -> list[Found]:
        """Take the next piece of text and return what is certain now."""
        self._held += piece
        return list(self._settle(final=False))

    def flush(self) -> list[Found]:
        """Return the rest: the answer has ended. A call that lacks only its closing marker counts."""
        found = list(self._settle(final=True))
        held, self._held = self._held, ""
        return [*found, held] if held and (held.strip(self._edge) or not self.num_calls) else found

    @property
    def _edge(self) -> str:
        return BLANKS + (";" if self._form.bare and self.num_calls else "")

    def _settle(self, final: bool) -> Iterator[Found]:
        while True:
            if not self._inside:
                yield from self._text_before_a_call()
            if not self._inside:
                return
            whole = yield from self._block(final)
            if not whole:
                return
            self._inside = False

    def _block(self, final: bool) -> Generator[Found, None, bool]:
        """Yield what is certain of a block of calls; return whether the block has ended."""
        lead = len(self._held) - len(self._held.lstrip(self._edge))
        text = self._held[lead:]
        if not (self._parse_trigger.should_parse(text) or final):
            return False
        block = _read(text, self._form, self._tools, final, self._parse_trigger.end)
        if block is None:
            return False
        self._parse_trigger = self._form.parse_trigger()
        size, calls = lead + block[0], block[1]
        if not calls:
            yield self._take(size)
        self.num_calls += len(calls)
        yield from calls
        self._held = self._held[size:] if calls else self._held
        return True

    def _text_before_a_call(self) -> Iterator[str]:
        """Yield what is certainly text; what is held then begins with a call, or with what may become one."""
        edge = self._edge
        at = self._begin()
        lead = len(self._held) - len(self._held.lstrip(edge))
        if self._form.bare and not self._said and self._held[lead : lead + 1] == "{":
            at = lead
        self._inside = at >= 0
        end = at if self._inside else len(self._held) - self._half()
        text = self._held[:end].rstrip(edge)
        if not text and end > MAX_BLANKS:
            text = self._held[:end]
        if text:
            yield self._take(len(text))

    def _begin(self) -> int:
        """Where in the held text a call may begin, or -1."""
        found = [self._held.find(mark) for mark in (self._form.opening, *self._heads)]
        return min((at for at in found if at >= 0), default=-1)

    def _half(self) -> int:
        """Length of the longest suffix of the held text that may become the beginning of a call."""
        longest = max(map(len, (self._form.opening, *self._heads)))
        tail = self._held[-longest:]
        if self._heads and self._form.opening[0] not in tail:  # the heads begin with the same character
            return 0
        return max(overlap(tail, mark) for mark in (self._form.opening, *self._heads))

    def _take(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        self._said = True
        return text


def _read(text: str, form: Form, tools: Tools, final: bool, end: int = -1) -> tuple[int, list[Call]] | None:
    """The length and the calls of the block that `text` begins with; no calls: malformed; None: not complete yet.

    `end`: where the block's closing mark begins, if the form quotes its values and the mark was found; else -1.
    """
    start = len(form.opening) if text.startswith(form.opening) else 0
    if isinstance(form.layout, Named):
        one = form.layout.first(text, start)
        return None if one is None else (one[0], _made([] if one[1] is None else [one[1]], tools))
    if form.layout is not None:
        if end < 0 and (final or not isinstance(form.layout, Tags | Quoted)):
            end = text.find(form.closing, start)
        if end < 0 and not final:
            return None
        size = len(text) if end < 0 else end + len(form.closing)
        return size, _made(form.layout.read(text[start : size if end < 0 else end], tools), tools)
    at = start + len(text[start:]) - len(text[start:].lstrip(BLANKS))
    if at == len(text):
        return None
    if text[at] not in "{[":
        return at, []
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        closed = text.find(form.closing, at) if form.closing else -1
        # An error before the marker is final; otherwise the marker may be part of a string that is still open.
        malformed = closed >= 0 and error.pos <= closed and not error.msg.startswith("Unterminated string")
        return (closed + len(form.closing), []) if malformed else None
    except (RecursionError, ValueError):  # ValueError: an integer with thousands of digits
        return at + 1, []
    rest = text[end:].lstrip(BLANKS)
    if form.closing and not rest.startswith(form.closing):
        if not form.closing.startswith(rest):
            return end, []
        if not final:
            return None
        rest = form.closing
        end, text = len(text), text + form.closing
    size = len(text) - len(rest) + len(form.closing) if form.closing else end
    items = value if isinstance(value, list) else [value]
    calls = [call_of(item, form.arguments, tools) for item in items]
    return size, [call for call in calls if call is not None] if None not in calls else []


def _made(found: Sequence[Read], tools: Tools) -> list[Call]:
    """The calls of a block; none if one of them names no offered tool."""
    calls = [_checked(name, arguments, tools) for name, arguments in found]
    return [call for call in calls if call is not None] if None not in calls else []


def call_of(item: object, key: str, tools: Collection[str]) -> Call | None:
    """The call in a JSON value, with its arguments under `key`; None if it is not a call of one of these tools."""
    name = item.get("name") if isinstance(item, dict) else None
    arguments = item.get(key) if isinstance(item, dict) else None
    return _checked(name, arguments, tools)


def _checked(name: object, arguments: object, tools: Collection[str]) -> Call | None:
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (RecursionError, ValueError):  # ValueError: what Python parses but JSON lacks: NaN, a lone surrogate
        return None
    return Call(name, text)

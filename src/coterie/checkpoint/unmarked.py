"""Tool calls that a model writes without its form's marks, at the beginning of an answer: plain or in a code block.

    {"name": "add", "arguments": {"a": 2}}          ```json
                                                    {"name": "add", "arguments": {"a": 2}}
                                                    ```

Qwen2.5-Coder writes most of its calls this way, whatever its template says. Text is held back only as long as it may
become a call of an offered tool.
Knows nothing about template syntax, tokens or requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

from coterie.checkpoint.calls import Call, CallReader, Found, call_of
from coterie.checkpoint.nesting import BLANKS, MAX_BLANKS, Nested

_FENCE = "```"
_OPENINGS = ("", _FENCE, f"{_FENCE}json")
_BLANK = re.compile(f"[{BLANKS}]+")
_HEAD = re.compile(
    r'\s*(?:```\s+)?(?:```(?:json)?\s*)?(?=\{{1,2}\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*\{)'
)
_CLOSING = re.compile(r"\s*```[ \t]*(?:\n|$)")


class UnmarkedText:
    """Wraps the reader `marked`: finds calls without marks at the beginning of an answer, and passes on the rest.

    `tools`: the names of those that may be called. `several`: there may be more than one call.
    """

    def __init__(self, marked: CallReader, tools: Collection[str], several: bool = True) -> None:
        self._marked, self._tools, self._several = marked, frozenset(tools), several
        self._heads = self._beginnings(_OPENINGS)
        self._longest = max(map(len, self._heads), default=0) + MAX_BLANKS
        self._held = ""
        self._open = True  # an unmarked call may still begin
        self._value: Nested | None = None  # the call in progress
        self._begun = self._scanned = 0  # where it begins in the held text, and how far that has been scanned
        self._num_own = 0

    @property
    def num_calls(self) -> int:
        """The number of calls so far, with marks or without."""
        return self._num_own + self._marked.num_calls

    @property
    def cut(self) -> bool:
        """True while the arguments of a call that was returned are incomplete."""
        return self._marked.cut

    def push(self, piece: str) -> list[Found]:
        """Take the next piece of text and return what is certain now."""
        if not self._open:
            return self._marked.push(piece)
        self._held += piece
        return list(self._settle())

    def flush(self) -> list[Found]:
        """Return the rest: the answer has ended. An incomplete call is text."""
        rest = list(self._as_text()) if self._open else []
        return [*rest, *self._marked.flush()]

    def _settle(self) -> Iterator[Found]:
        while self._open:
            if self._value is None:
                head = _HEAD.match(self._held)
                more = self._several or not self._num_own
                if head is None or head[1] not in self._tools or not more:
                    if not self._may_begin():
                        yield from self._as_text()
                    return
                self._begun = self._scanned = head.end()
                self._value = Nested()
            self._scanned += self._value.push(self._held[self._scanned :])
            if not self._value.whole:
                return
            yield from self._whole()

    def _whole(self) -> Iterator[Found]:
        """Yield the call that is complete now."""
        call = _read(self._held[self._begun : self._scanned], self._tools)
        if call is None:
            yield from self._as_text()
            return
        self._held, self._value = self._held[self._scanned :], None
        self._num_own += 1
        again = (*_OPENINGS, *(_FENCE + one for one in _OPENINGS))
        self._heads = self._beginnings(again) if self._several else (_FENCE,)
        yield call

    def _may_begin(self) -> bool:
        """Whether the held text may become a call, ignoring white space."""
        if len(self._held) > self._longest:
            return False
        dense = _BLANK.sub("", self._held)
        return any(head.startswith(dense) for head in self._heads)

    def _beginnings(self, openings: Collection[str]) -> tuple[str, ...]:
        heads = [f'{{"name":{json.dumps(name, ensure_ascii=False)},"arguments":{{' for name in self._tools]
        begins = [opening + brace for opening in openings for brace in ("", "{")]
        return tuple([_BLANK.sub("", begin + head) for begin in begins for head in heads])

    def _as_text(self) -> list[Found]:
        """Pass the held text on to the wrapped reader; no unmarked call can begin any more."""
        held, self._held, self._open = self._held, "", False
        if self._num_own:
            closing = _CLOSING.match(held)
            held = held[closing.end() if closing else 0 :].lstrip(BLANKS)
            held = "" if _FENCE.startswith(held) else held
        return self._marked.push(held) if held else []


def _read(text: str, tools: Collection[str]) -> Call | None:
    """The call in a JSON object, possibly in doubled braces, as some GGUF files' templates show them to the model."""
    try:
        return call_of(json.loads(text[1:-1] if text.startswith("{{") else text), "arguments", tools)
    except (RecursionError, ValueError):
        return None

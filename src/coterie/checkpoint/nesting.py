"""Finds the end of a JSON value in streamed text, and tells when a block of calls is worth parsing.

    {"name": "add", "arguments": {"a": "}   2}"}}   </tool_call>
                                                ^ whole        ^ closed         each character is scanned once

Knows nothing about what the values mean.
"""

from __future__ import annotations

BLANKS = " \t\r\n"
MAX_BLANKS = 1024  # maximum white space held back, since a call or a thought may begin or end after it


class Nested:
    """Finds the end of a JSON object or list in streamed text: where its brackets balance, even if it is malformed."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False
        self.whole = False

    def push(self, text: str) -> int:
        """The number of characters of the next piece that belong to the value."""
        for place, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = letter == "\\", letter != '"'
            elif letter == '"':
                self._quoted = True
            else:
                self._depth += (letter in "{[") - (letter in "}]")
                if self._depth == 0:
                    self.whole = True
                    return place + 1
        return len(text)


class ParseTrigger:
    """Tells when a growing block is worth parsing again: parsing a long call at every piece would be quadratic.

    `opening`, `closing`: the block's marks. `mark`: what precedes a JSON value in the block; empty: only white space;
    None: there is no JSON value, and only the closing mark ends the block. `within`: values lie between these two
    marks, where a closing mark is part of the value; outside of them it ends the block, at `end`.
    """

    def __init__(self, opening: str, closing: str, mark: str | None, within: tuple[str, str] | None = None) -> None:
        self._opening, self._closing, self._mark, self._within = opening, closing, mark, within
        self._scanned, self._inside = 0, False  # with `within`: position scanned so far, and whether it is in a value
        self.end = -1  # where the closing mark begins
        self._value, self._at = Nested(), -1  # the JSON value, and up to where it was pushed; -1: not begun
        self._size, self._closed, self._behind = 0, False, -1

    def should_parse(self, block: str) -> bool:
        """Whether to parse a block that has grown to this. It begins with the opening mark, if the model wrote that."""
        before, self._size = self._size, len(block)
        if self._within is not None:
            return self._ends(block, *self._within)
        if self._closing and not self._closed:
            self._closed = block.find(self._closing, max(before - len(self._closing), 0)) >= 0
            if self._closed:
                return True
        if self._mark is None:
            return False
        begun = self._at >= 0
        if not begun:
            self._at = self._begin(block)
        if self._at >= 0 and not self._value.whole:
            self._at += self._value.push(block[self._at :])
        if not begun:
            return True
        if not self._value.whole or self._behind >= len(self._closing):
            return False  # after the value, wait only for the length of a closing mark
        behind, self._behind = self._behind, len(block[self._at :].strip(BLANKS))
        return self._behind != behind

    def _ends(self, block: str, start_mark: str, end_mark: str) -> bool:
        """Whether the closing mark has come, outside all values."""
        while self.end < 0:
            if self._inside:
                at = block.find(end_mark, self._scanned)
                if at < 0:
                    break
                self._inside, self._scanned = False, at + len(end_mark)
                continue
            value, end = block.find(start_mark, self._scanned), block.find(self._closing, self._scanned)
            if value < 0 and end < 0:
                break
            if end >= 0 and not 0 <= value < end:
                self.end = end
                return True
            self._inside, self._scanned = True, value + len(start_mark)
        longest = max(map(len, (start_mark, end_mark, self._closing)))
        self._scanned = max(self._scanned, len(block) - longest + 1)
        return False

    def _begin(self, block: str) -> int:
        """Where the JSON value begins, or -1."""
        start = len(self._opening) if block.startswith(self._opening) else 0
        if self._mark:
            start = block.find(self._mark, start) + len(self._mark)
            if start < len(self._mark):
                return -1
        at = len(block) - len(block[start:].lstrip(BLANKS))
        return at if block[at : at + 1] in ("{", "[") else -1

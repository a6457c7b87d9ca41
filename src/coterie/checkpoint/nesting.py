"""Where a JSON value ends, and when a block of calls is worth reading, in text that comes in pieces.

    {"name": "add", "arguments": {"a": "}   2}"}}   </tool_call>
                                                ^ whole        ^ closed         each letter is looked at once

Knows nothing about what values say.
"""

from __future__ import annotations

BLANKS = " \t\r\n"
MAX_BLANKS = 1024  # that are held back, since a call or a thought may begin or end behind them


class Nested:
    """Finds the end of a JSON object or list that comes in pieces; of a malformed one, where its brackets close."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False
        self.whole = False

    def push(self, text: str) -> int:
        """How much of the next text belongs to it."""
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


class Ripening:
    """Tells when a block that grows may say more than before: a long call would else be read anew at each piece.

    `opening`, `closing`: the block's marks. `mark`: what stands before a JSON value in it, empty: blanks alone; None:
    there is no such value, and the closing mark alone ends it. `within`: there are others between these marks, in which
    a closing mark is a part of the value; one elsewhere ends the block, at `end`.
    """

    def __init__(self, opening: str, closing: str, mark: str | None, within: tuple[str, str] | None = None) -> None:
        self._opening, self._closing, self._mark, self._within = opening, closing, mark, within
        self._scanned, self._inside = 0, False  # of values in marks: how far a block is known, and what lies there
        self.end = -1  # where its closing mark begins
        self._value, self._at = Nested(), -1  # of the block, what of it was pushed; -1: it has not begun
        self._size, self._closed, self._behind = 0, False, -1

    def ripe(self, block: str) -> bool:
        """Whether to read a block that has grown to this. It begins with the opening mark, if that is there."""
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
            return False  # behind a value, no more than a closing mark is waited for
        behind, self._behind = self._behind, len(block[self._at :].strip(BLANKS))
        return self._behind != behind

    def _ends(self, block: str, before: str, behind: str) -> bool:
        """Whether the closing mark has come, outside of all values."""
        while self.end < 0:
            if self._inside:
                at = block.find(behind, self._scanned)
                if at < 0:
                    break
                self._inside, self._scanned = False, at + len(behind)
                continue
            value, end = block.find(before, self._scanned), block.find(self._closing, self._scanned)
            if value < 0 and end < 0:
                break
            if end >= 0 and not 0 <= value < end:
                self.end = end
                return True
            self._inside, self._scanned = True, value + len(before)
        longest = max(map(len, (before, behind, self._closing)))
        self._scanned = max(self._scanned, len(block) - longest + 1)
        return False

    def _begin(self, block: str) -> int:
        """Where the value begins, or -1."""
        start = len(self._opening) if block.startswith(self._opening) else 0
        if self._mark:
            start = block.find(self._mark, start) + len(self._mark)
            if start < len(self._mark):
                return -1
        at = len(block) - len(block[start:].lstrip(BLANKS))
        return at if block[at : at + 1] in ("{", "[") else -1

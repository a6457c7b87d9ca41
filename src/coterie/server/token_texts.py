"""Matches texts to tokens: logprobs come with all generated tokens, an item's part gets those of its own text.

    tokens   "</think>"  "\\n\\n"  "Let"  " me"  " see"  "<tool_call>"  ...
    take("Let me see")            "Let"  " me"  " see"

Knows nothing about items or how they are written.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeAlias

from coterie.api.logprobs import TokenLogprob

Piece: TypeAlias = tuple[str, tuple[TokenLogprob, ...]]  # a piece of text, with the tokens that begin in it


class TokenTexts:
    """Tokens with their texts, in order, held until a text is taken that they, or later ones, belong to."""

    def __init__(self) -> None:
        # A character of several tokens counts as the text of the last of them.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[Piece] = []

    def add(self, tokens: Iterable[TokenLogprob]) -> None:
        """Add generated tokens."""
        self._held += [(self._decoder.decode(one.bytes), (one,)) for one in tokens]

    def put(self, piece: str, tokens: tuple[TokenLogprob, ...]) -> None:
        """Add tokens whose text is known."""
        self._held.append((piece, tokens))

    def forget(self, last: int = 0) -> None:
        """Discard all held pieces but the `last` ones: they belong to no text that will be taken."""
        del self._held[: max(len(self._held) - last, 0)]

    def take(self, text: str, behind: str = "") -> Sequence[Piece]:
        """The pieces of the next text, in order, which follows the text `behind`; discards everything before it.

        If the tokens spell it differently, it is a single piece with all of them.
        """
        if not text:
            return ()
        spelled = "".join([piece for piece, _ in self._held])
        before = spelled.find(behind)
        begin = self._begin_of(text, spelled, before + len(behind) if before >= 0 else 0)
        if begin < 0:
            whole = (text, tuple([one for _, tokens in self._held for one in tokens]))
            self._held.clear()
            return (whole,)
        end, position = begin + len(text), 0
        found, rest = list[Piece](), list[Piece]()
        for piece, tokens in self._held:
            first, position = position, position + len(piece)
            if first >= end:
                rest.append((piece, tokens))
            elif position > begin or (not piece and first == begin):
                found.append((piece[max(begin - first, 0) : end - first], tokens))
                if position > end:
                    rest.append((piece[end - first :], ()))
        self._held = rest
        return found

    def _begin_of(self, text: str, spelled: str, start: int) -> int:
        """Where a text begins at or after `start`; -1: nowhere. Prefers piece starts: "think" is not in "</think>"."""
        begins = {0, *accumulate([len(piece) for piece, _ in self._held])}
        first = found = spelled.find(text, start)
        while found >= 0 and found not in begins:
            found = spelled.find(text, found + 1)
        return first if found < 0 else found

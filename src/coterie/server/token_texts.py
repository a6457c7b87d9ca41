"""Of which tokens a text is: logprobs come with all tokens that were drawn, an item's part has those of its own text.

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

Piece: TypeAlias = tuple[str, tuple[TokenLogprob, ...]]  # of a text, with the tokens that begin in it


class TokenTexts:
    """Tokens with their texts, in order, until a text is taken that they, or later ones, are of."""

    def __init__(self) -> None:
        # A character of several tokens is the text of the last one of them.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[Piece] = []

    def add(self, tokens: Iterable[TokenLogprob]) -> None:
        """More tokens were drawn."""
        self._held += [(self._decoder.decode(one.bytes), (one,)) for one in tokens]

    def put(self, piece: str, tokens: tuple[TokenLogprob, ...]) -> None:
        """The same of tokens whose text is known."""
        self._held.append((piece, tokens))

    def forget(self, last: int = 0) -> None:
        """What came is of no text that will be taken, but for so many `last` pieces."""
        del self._held[: max(len(self._held) - last, 0)]

    def take(self, text: str, behind: str = "") -> Sequence[Piece]:
        """The pieces of the next text, in order, which stands `behind` another one; all before it is forgotten.

        Where the tokens spell it otherwise it is one piece with all of them.
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
        """Where a text stands behind `start`; -1: nowhere. First where a piece begins: "think" is not of "</think>"."""
        begins = {0, *accumulate([len(piece) for piece, _ in self._held])}
        first = found = spelled.find(text, start)
        while found >= 0 and found not in begins:
            found = spelled.find(text, found + 1)
        return first if found < 0 else found

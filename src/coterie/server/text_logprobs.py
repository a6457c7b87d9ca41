"""Logprobs in the format of text completions: lists of tokens, their logprobs and their offsets in the text.

Knows nothing about how they were computed. Source: the OpenAI API reference, "Create completion".
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from coterie.api.logprobs import TokenLogprob
from coterie.core.errors import RequestError
from coterie.engine.request import MAX_TOP_LOGPROBS
from coterie.server.choosing import finite
from coterie.server.fields import integer


def likeliest(body: Mapping[str, object]) -> int | None:
    """The number of alternatives per token for which logprobs are requested; None: no logprobs. Raises RequestError."""
    wanted = None if body.get("logprobs") is False else integer(body, "logprobs")
    if wanted is not None and not 0 <= wanted <= MAX_TOP_LOGPROBS:
        raise RequestError("logprobs", f"is {wanted}", f"give a whole number from 0 to {MAX_TOP_LOGPROBS}")
    return wanted


class TextLogprobs:
    """Writes one choice's logprobs, whole or in pieces. `prompt`: its text, if the choice's text begins with it."""

    def __init__(self, prompt: str = "") -> None:
        self._prompt, self._offset = prompt, 0
        # A character of several tokens is counted, with its offset, at the last of them.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, of_prompt: Sequence[TokenLogprob], of_answer: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Those of the next tokens. `top_logprobs` includes the chosen token, as in OpenAI's API.

        A prompt's first token, which has no predecessor, gets null for both.
        """
        offsets = [self._pass(one, self._prompt) for one in of_prompt]
        if of_prompt:
            self._offset = len(self._prompt)
        offsets += [self._pass(one) for one in of_answer]
        found = (*of_prompt, *of_answer)
        return {
            "tokens": [_name(one) for one in found],
            "token_logprobs": [None if isnan(one.logprob) else finite(one.logprob) for one in found],
            "top_logprobs": [None if isnan(one.logprob) else _top(one) for one in found],
            "text_offset": offsets,
        }

    def _pass(self, one: TokenLogprob, text: str = "") -> int:
        """The offset of a token; advances past it."""
        begin, piece = self._offset, self._decoder.decode(one.bytes)
        if text and not text.startswith(piece, begin):
            # Special tokens, and a space before the first word, are added by the tokenizer and not part of the text.
            piece = "" if one.special else piece.removeprefix(" ") if begin == 0 else piece
        self._offset = begin + len(piece)
        return begin


def _top(one: TokenLogprob) -> dict[str, float]:
    return {_name(other): finite(other.logprob) for other in (*one.top, one)}


def _name(one: TokenLogprob) -> str:
    """A token's text; a partial character is written as bytes, so that different parts have different names."""
    try:
        return one.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)

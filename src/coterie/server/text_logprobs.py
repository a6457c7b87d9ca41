"""Logprobs as text completions have them: lists of tokens, of their logprobs and of where they begin in the text.

Knows nothing about how they were found. Source: the OpenAI API reference, "Create completion".
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
    """Of how many tokens in each place logprobs are wanted; None: of none at all. Raises RequestError."""
    wanted = None if body.get("logprobs") is False else integer(body, "logprobs")
    if wanted is not None and not 0 <= wanted <= MAX_TOP_LOGPROBS:
        raise RequestError("logprobs", f"is {wanted}", f"give a whole number from 0 to {MAX_TOP_LOGPROBS}")
    return wanted


class TextLogprobs:
    """Writes those of one choice, whole or piece by piece. `prompt`: its text, if the choice's text begins with it."""

    def __init__(self, prompt: str = "") -> None:
        self._prompt, self._offset = prompt, 0
        # A character of several tokens begins, and is counted, where the last one of them ends it.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, of_prompt: Sequence[TokenLogprob], of_answer: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens'. `top_logprobs` has the token that came too, as OpenAI has it.

        A prompt's first token, which nothing comes before, has null in the place of both.
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
        """Where a token begins; the next one begins behind it."""
        begin, said = self._offset, self._decoder.decode(one.bytes)
        if text and not text.startswith(said, begin):
            # What a tokenizer puts before a text is none of it: special tokens, and a space before its first word.
            said = "" if one.special else said.removeprefix(" ") if begin == 0 else said
        self._offset = begin + len(said)
        return begin


def _top(one: TokenLogprob) -> dict[str, float]:
    return {_name(other): finite(other.logprob) for other in (*one.top, one)}


def _name(one: TokenLogprob) -> str:
    """A token's text; part of a character is spelled in bytes, so that two parts are two names."""
    try:
        return one.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)

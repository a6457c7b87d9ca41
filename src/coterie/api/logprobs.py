"""Logprobs with the tokens' texts: what an expert's tokens and their likeliest alternatives are to a reader.

Knows nothing about how they were found.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.checkpoint.tokenizer import Tokenizer
from coterie.engine.request import TokenLogprobs


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability; `top` are the likeliest in its place, best first.

    `bytes` are exact; `text` shows a part of a character as U+FFFD. `special`: no part of a text, unless
    spelled there.
    """

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    special: bool = False


def spell(tokenizer: Tokenizer | None, found: TokenLogprobs) -> TokenLogprob:
    """An engine's logprobs in an expert's words; without a tokenizer there are none."""

    def one(token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        spelled = b"" if tokenizer is None else tokenizer.token_bytes(token)
        special = tokenizer is not None and token in tokenizer.special_ids
        return TokenLogprob(token, spelled.decode(errors="replace"), spelled, logprob, top, special)

    return one(found.token, found.logprob, tuple([one(*other) for other in found.top]))

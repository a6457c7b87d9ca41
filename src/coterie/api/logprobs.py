"""Logprobs with the tokens' texts, in the form that clients read.

Knows nothing about how they were computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.checkpoint.tokenizer import Tokenizer
from coterie.engine.request import TokenLogprobs


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability; `top`: the likeliest tokens at its position, best first.

    `bytes` are exact; `text` shows a part of a character as U+FFFD. `special`: in the text only if spelled out.
    """

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    special: bool = False


def spell(tokenizer: Tokenizer | None, found: TokenLogprobs) -> TokenLogprob:
    """An engine's logprobs with token texts; without a tokenizer these are empty."""

    def one(token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        spelled = b"" if tokenizer is None else tokenizer.token_bytes(token)
        special = tokenizer is not None and token in tokenizer.special_ids
        return TokenLogprob(token, spelled.decode(errors="replace"), spelled, logprob, top, special)

    return one(found.token, found.logprob, tuple([one(*other) for other in found.top]))

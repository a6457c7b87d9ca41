"""Parses what a request asks about the choice of tokens beyond sampling (bias, logprobs), and writes logprobs.

Knows nothing about how tokens are chosen. Source: the OpenAI API reference, "Create chat completion";
`repetition_penalty` is the name in vLLM and llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from coterie.api.logprobs import TokenLogprob
from coterie.core.errors import RequestError, shown
from coterie.engine.request import MAX_BIAS, ChoiceParams
from coterie.server.fields import flag, get, integer, number

PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
CHOOSING = (*PENALTIES, "logprobs", "top_logprobs")
MIN_LOGPROB = -9999.0  # stands for minus infinity, as in OpenAI's API
QUICK_LOGPROBS = 2048  # encoded in about 5 ms


def choosing(body: Mapping[str, object]) -> ChoiceParams:
    """How tokens are chosen. Raises RequestError naming the field."""
    wanted, top = flag(body, "logprobs"), integer(body, "top_logprobs")
    if top and not wanted:
        raise RequestError("top_logprobs", f"is {top} but logprobs is not true", "set logprobs to true")
    return replace(biased(body), top_logprobs=(top or 0) if wanted else None)


def biased(body: Mapping[str, object]) -> ChoiceParams:
    """What is added to logits, without logprobs; penalties are sampling settings (fields.py). Raises RequestError."""
    return ChoiceParams(logit_bias=_bias(get(body, "logit_bias", dict, "an object of token ids and numbers") or {}))


def _bias(given: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    found: dict[int, float] = {}
    for name in given:
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise RequestError("logit_bias", f"names {shown(name)}, which is no token id", "give whole numbers from 0")
        bias = number({"logit_bias": given[name]}, "logit_bias", 0.0)
        if not abs(bias) <= MAX_BIAS:
            raise RequestError("logit_bias", f"of token {name} is {bias:g}", f"give {-MAX_BIAS:g} to {MAX_BIAS:g}")
        found[int(name)] = bias
    return tuple(found.items())


def num_logprobs(found: Iterable[TokenLogprob]) -> int:
    """How many logprobs these are in all, with the alternatives of each token."""
    return sum([1 + len(one.top) for one in found])


def logprobs_of(found: Sequence[TokenLogprob], choice: ChoiceParams, whole: bool = False) -> dict[str, Any] | None:
    """The `logprobs` of a choice, or of a part of it; null if not requested.

    For a whole choice, a large number is created lazily during encoding: as objects they would make Python's garbage
    collector pause all threads.
    """
    if choice.top_logprobs is None:
        return None
    content = map(with_top, found)
    is_many = whole and num_logprobs(found) > QUICK_LOGPROBS
    return {"content": content if is_many else list(content), "refusal": None}


def with_top(one: TokenLogprob) -> dict[str, Any]:
    """A token's logprob, with those of its likeliest alternatives."""
    return {**_written(one), "top_logprobs": [_written(other) for other in one.top]}


def _written(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.text, "logprob": finite(one.logprob), "bytes": list(one.bytes)}


def finite(logprob: float) -> float:
    """A logprob that JSON can represent."""
    return logprob if math.isfinite(logprob) else MIN_LOGPROB

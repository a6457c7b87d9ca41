"""What a request asks of the choice of tokens beside settings: bias and logprobs, and how logprobs are written.

Knows nothing about how tokens are chosen. Source: the OpenAI API reference, "Create chat completion";
`repetition_penalty` is what vLLM and llama.cpp call it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from coterie.api.logprobs import TokenLogprob
from coterie.checkpoint.grammar import ANY_OBJECT
from coterie.core.errors import RequestError, shown
from coterie.engine.request import MAX_BIAS, ChoiceParams
from coterie.server.body import parsed
from coterie.server.fields import check_names, flag, get, integer, number

PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
STRUCTURED = "structured_outputs"  # vLLM's way to hold an answer to a form
CHOOSING = (*PENALTIES, "logprobs", "top_logprobs", "response_format", STRUCTURED)
_OTHER_FORMS = ("regex", "choice", "grammar", "structural_tag", "whitespace_pattern")
LEAST_LOGPROB = -9999.0  # stands for what is less likely than a number can say, as OpenAI has it
QUICK_LOGPROBS = 2048  # which are written in some 5 ms


def choosing(body: Mapping[str, object]) -> ChoiceParams:
    """How tokens are chosen. Raises RequestError naming the field."""
    wanted, top = flag(body, "logprobs"), integer(body, "top_logprobs")
    if top and not wanted:
        raise RequestError("top_logprobs", f"is {top} but logprobs is not true", "set logprobs to true")
    return replace(biased(body), top_logprobs=(top or 0) if wanted else None)


def biased(body: Mapping[str, object]) -> ChoiceParams:
    """What is added to logits, without logprobs; penalties are settings (fields.py). Raises RequestError."""
    return ChoiceParams(logit_bias=_bias(get(body, "logit_bias", dict, "an object of token ids and numbers") or {}))


def form_of(body: Mapping[str, object]) -> str:
    """The JSON schema, as JSON, that `response_format` holds an answer to; empty: none. Raises RequestError."""
    if structured := get(body, STRUCTURED, dict, "an object with json"):
        if body.get("response_format") is not None:
            raise RequestError(STRUCTURED, "and response_format were both given", "give one of them")
        return _structured(structured)
    given = get(body, "response_format", dict, "an object") or {"type": "text"}
    kind = given.get("type")
    if kind == "text":
        return ""
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        raise RequestError("response_format", f"has type {shown(kind)}", "use text, json_object or json_schema")
    named = given.get("json_schema")
    named = named if isinstance(named, dict) else {}
    schema = named.get("schema")
    if not isinstance(schema, dict):
        fact = "has no json_schema with a schema that is an object"
        raise RequestError(
            "response_format", fact, 'give {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
        )
    for word in ("name", "description"):
        get(named, word, str, "a string", "response_format.json_schema.")
    flag(named, "strict", "response_format.json_schema.")  # held either way
    return json.dumps(schema)


def _structured(given: Mapping[str, Any]) -> str:
    """The same of vLLM's field, of whose ways there is JSON alone. Raises RequestError."""
    within = f"{STRUCTURED}."
    off = {"disable_any_whitespace": (False,), "disable_fallback": (False, True)}
    check_names(given, ("json", "json_object"), {**dict.fromkeys(_OTHER_FORMS, ()), **off}, within)
    schema, anything = given.get("json"), flag(given, "json_object", within)
    if schema is None:
        return ANY_OBJECT if anything else ""
    found = parsed(schema, f"{within}json") if isinstance(schema, str) else schema
    if not isinstance(found, dict) or anything:
        fact = f"is {shown(schema)}" if not anything else "and json_object were both given"
        raise RequestError(f"{within}json", fact, "give a schema that is an object")
    return json.dumps(found)


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
    """How many are written of these, those beside each token too."""
    return sum([1 + len(one.top) for one in found])


def logprobs_of(found: Sequence[TokenLogprob], choice: ChoiceParams, whole: bool = False) -> dict[str, Any] | None:
    """The `logprobs` of a choice, or of a part of it; null where they were not asked for.

    Of a whole one, very many are made as they are written: as objects they would stop all threads while Python looks
    for garbage.
    """
    if choice.top_logprobs is None:
        return None
    content = map(_with_top, found)
    is_many = whole and num_logprobs(found) > QUICK_LOGPROBS
    return {"content": content if is_many else list(content), "refusal": None}


def _with_top(one: TokenLogprob) -> dict[str, Any]:
    return {**_written(one), "top_logprobs": [_written(other) for other in one.top]}


def _written(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.text, "logprob": finite(one.logprob), "bytes": list(one.bytes)}


def finite(logprob: float) -> float:
    """A logprob that JSON can say."""
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB

"""Structured outputs: the constraint that a body puts on its answers, in the fields of OpenAI and of other servers.

    response_format                     OpenAI         a JSON object or schema
    structured_outputs, guided_...      vLLM           those, regex, choice, grammar
    regex, ebnf, json_schema            SGLang
    grammar, json_schema                llama-server
    response_format with a schema       Together, llama-server

Knows nothing about how a constraint is enforced. Sources: the OpenAI API reference, "Create chat completion"; the
documentation of those servers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coterie.checkpoint.constraint import Constraint
from coterie.checkpoint.grammar import ANY_OBJECT
from coterie.core.errors import RequestError, shown
from coterie.server.body import parsed
from coterie.server.fields import check_names, flag, get

STRUCTURED, FORMAT = "structured_outputs", "response_format"
# Top-level fields of other servers, and their names within `structured_outputs`.
_ALIASES = {
    **{"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"},
    **{"json_schema": "json", "regex": "regex", "ebnf": "grammar", "grammar": "grammar"},
}
STRUCTURING = (FORMAT, STRUCTURED, *_ALIASES)
_WAYS = ("json", "json_object", "regex", "choice", "grammar")
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "disable_any_whitespace": (False,),
    "disable_fallback": (False, True),
    **dict.fromkeys(("structural_tag", "whitespace_pattern"), ()),
}


def form_of(body: Mapping[str, object]) -> str | Constraint:
    """The constraint on answers: a JSON schema, as JSON, or a Constraint; empty: none. Raises RequestError."""
    given = [name for name in STRUCTURING if body.get(name) not in (None, "", {})]
    if len(given) > 1:
        raise RequestError(given[-1], f"and {given[0]} were both given", "give one of them")
    if not given or given == [FORMAT]:
        return _formatted(body)
    name = given[0]
    if name in _ALIASES:
        return _structured({_ALIASES[name]: body[name]}, {_ALIASES[name]: name})
    structured = get(body, STRUCTURED, dict, "an object with json, regex, choice or grammar")
    check_names(structured, _WAYS, _REFUSED, f"{STRUCTURED}.")
    return _structured(structured, {way: f"{STRUCTURED}.{way}" for way in _WAYS})


def _formatted(body: Mapping[str, object]) -> str:
    """The JSON schema of `response_format`. Raises RequestError."""
    given = get(body, FORMAT, dict, "an object") or {"type": "text"}
    kind = given.get("type")
    if kind == "text":
        return ""
    if kind not in ("json_object", "json_schema"):
        raise RequestError(FORMAT, f"has type {shown(kind)}", "use text, json_object or json_schema")
    beside = get(given, "schema", dict, "a schema that is an object", "response_format.")
    if kind == "json_object":
        return json.dumps(beside) if beside else ANY_OBJECT
    named = given.get("json_schema")
    if named is not None and beside is not None:
        raise RequestError(FORMAT, "has both a schema and a json_schema", "give one of them")
    named = named if isinstance(named, dict) else {}
    schema = named.get("schema") if beside is None else beside
    if not isinstance(schema, dict):
        fact = "has no json_schema with a schema that is an object"
        raise RequestError(FORMAT, fact, 'give {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}')
    for word in ("name", "description"):
        get(named, word, str, "a string", "response_format.json_schema.")
    flag(named, "strict", "response_format.json_schema.")  # enforced either way
    return json.dumps(schema)


def _structured(given: Mapping[str, Any], paths: Mapping[str, str]) -> str | Constraint:
    """The constraint given in `structured_outputs`. `paths`: the body's field for each kind. Raises RequestError."""
    anything = flag(given, "json_object", f"{STRUCTURED}.")
    ways = [way for way in _WAYS if given.get(way) is not None and (way != "json_object" or anything)]
    if len(ways) > 1:
        raise RequestError(paths[ways[0]], f"and {ways[1]} were both given", "give one of them")
    if not ways:
        return ""
    (way,), path = ways, paths[ways[0]]
    if anything:
        return ANY_OBJECT
    if way == "json":
        return _schema(given[way], path)
    if way == "choice":
        texts = given[way]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError(path, f"is {shown(texts)}", "give a list of texts")
        return Constraint.choice(texts, path)
    if not isinstance(given[way], str):
        raise RequestError(path, f"is {shown(given[way])}", "give a text")
    return Constraint.regex(given[way], path) if way == "regex" else Constraint.grammar(given[way], path)


def _schema(schema: object, path: str) -> str:
    found = parsed(schema, path) if isinstance(schema, str) else schema
    if not isinstance(found, dict):
        raise RequestError(path, f"is {shown(schema)}", "give a schema that is an object")
    return json.dumps(found)

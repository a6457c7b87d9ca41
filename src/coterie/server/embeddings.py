"""POST /v1/embeddings: texts or tokens in, a vector for each out.

Knows nothing about the engine. Source: the OpenAI API reference, "Create embeddings".
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coterie.api import Answer, Query, Serving
from coterie.api.embeddings import embedder, output_vectors, query_of
from coterie.api.texts import Text
from coterie.core.errors import RequestError, shown
from coterie.server import fields

MAX_INPUTS = 2048  # per request, as in OpenAI's API
FLOAT, BASE64 = "float", "base64"
USE = "prompt_name"  # the name in sentence-transformers
SUPPORTED = ("model", "input", "encoding_format", "dimensions", USE)
_WORDS = "give a text, a list of texts, a list of token ids or a list of such lists"


@dataclass(frozen=True, slots=True)
class EmbeddingsBody:
    """A validated request body: a query for each input, for one expert."""

    queries: tuple[Query, ...]
    expert: str
    dimensions: int | None
    as_base64: bool


def parse_embeddings(body: object, coterie: Serving) -> EmbeddingsBody:
    """Turn a decoded JSON body into queries. Raises RequestError naming the field, NotFoundError."""
    given = fields.as_object(body, "model and input")
    fields.check_names(given, SUPPORTED, {})
    form = fields.get(given, "encoding_format", str, "float or base64") or FLOAT
    if form not in (FLOAT, BASE64):
        raise RequestError("encoding_format", f"is {shown(form)}", "allowed is float or base64")
    dimensions = fields.integer(given, "dimensions")
    if dimensions is not None and dimensions < 1:
        raise RequestError("dimensions", f"is {dimensions}", "allowed is 1 or more")
    use = fields.get(given, USE, str, "the name of a prompt") or ""
    expert = embedder(coterie.texts, coterie.composition, fields.model(given))
    coterie.texts[expert].embedding.prompt(use)  # validates the name early
    each = [(item, ()) if isinstance(item, str) else ("", item) for item in _inputs(given.get("input"))]
    queries = tuple([query_of(text, expert, use, tokens) for text, tokens in each])
    return EmbeddingsBody(queries, expert, dimensions, form == BASE64)


def whole(body: EmbeddingsBody, answers: Sequence[Answer], text: Text) -> dict[str, Any]:
    """The response, from the answers of the expert of `text`.

    Raises RequestError for more dimensions than the vectors have.
    """
    vectors_ND = output_vectors(answers, text, body.dimensions)
    tokens = sum([answer.prompt_tokens for answer in answers])
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if body.as_base64
            else vector.tolist(),
        }
        for index, vector in enumerate(vectors_ND)
    ]
    cached = sum([answer.cached_tokens for answer in answers])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}
    return {"object": "list", "data": data, "model": body.expert, "usage": usage}


def _inputs(given: object) -> list[str | tuple[int, ...]]:
    """Each input as text or tokens."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise RequestError("input", "is missing, empty or no text", _WORDS)
    if fields.are_tokens(given):
        return [tuple(given)]
    if len(given) > MAX_INPUTS:
        raise RequestError("input", f"has {len(given)} items", f"send at most {MAX_INPUTS} at once")
    for place, item in enumerate(given):
        if not (isinstance(item, str) and item) and not fields.are_tokens(item):
            raise RequestError(f"input[{place}]", "is empty, or neither a text nor a list of token ids", _WORDS)
    return [item if isinstance(item, str) else tuple(item) for item in given]

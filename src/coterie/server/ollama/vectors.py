"""POST /api/embed and /api/embeddings: texts in, a vector for each out; texts that are too long are truncated.

Knows nothing about the engine. Source: Ollama's API reference, "Generate embeddings".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coterie.api import Answer, Query, Serving
from coterie.api.embeddings import normalised, output_vectors
from coterie.api.texts import Text
from coterie.api.types import prompt_of
from coterie.core.errors import RequestError, shown
from coterie.server import fields
from coterie.server.embeddings import parse_embeddings
from coterie.server.ollama.answers import nanoseconds
from coterie.server.ollama.asked import check_options
from coterie.server.ollama.names import keep_alive, named

SHARED = ("model", "options", "keep_alive", "truncate", "dimensions")
FIELDS = {"embed": "input", "embeddings": "prompt"}  # each endpoint's field for the texts


@dataclass(frozen=True, slots=True)
class Embed:
    """A validated request body: a query for each text; none if the model is only to be loaded."""

    model: str
    requested_model: str
    queries: tuple[Query, ...]
    dimensions: int | None
    keep_s: float | None


def parse_embed(body: object, coterie: Serving, endpoint: str) -> Embed:
    """Turn a decoded JSON body into queries. Raises RequestError naming the field, NotFoundError."""
    field = FIELDS[endpoint]
    given = fields.as_object(body, f"model and {field}")
    fields.check_names(given, (*SHARED, field), {})
    check_options(given)
    model, texts = named(given, coterie.composition), given.get(field)
    keep_s, cuts = keep_alive(given), given.get("truncate") is None or fields.flag(given, "truncate")
    if texts is None or texts in ("", []):
        return Embed(model, str(given["model"]), (), None, keep_s)
    each = [texts] if isinstance(texts, str) else texts if endpoint == "embed" else None
    if not isinstance(each, list) or not all(isinstance(text, str) for text in each):
        words = "give a text" if endpoint == "embeddings" else "give a text or a list of texts"
        raise RequestError(field, f"is {shown(texts)}", words)
    found = parse_embeddings({"model": model, "input": each, "dimensions": given.get("dimensions")}, coterie)
    queries = tuple([_cut(query, coterie) for query in found.queries]) if cuts else found.queries
    return Embed(model, str(given["model"]), queries, found.dimensions, keep_s)


def _cut(query: Query, coterie: Serving) -> Query:
    """The query truncated to its expert's context; unchanged if the text has fewer bytes than that."""
    text, model = coterie.texts[query.model], coterie.models[query.model]
    if len(query.messages[-1].content.encode()) < model.max_prompt_tokens:
        return query
    return replace(query, prompt_ids=text.encode(query, prompt_of(query), max_tokens=model.max_prompt_tokens))


def embedded(body: Embed, answers: Sequence[Answer], text: Text, seconds: float) -> dict[str, Any]:
    """The response of /api/embed, with vectors of length one; it took `seconds`."""
    vectors_ND = normalised(output_vectors(answers, text, body.dimensions))
    took = {
        "total_duration": nanoseconds(seconds),
        "load_duration": nanoseconds(max(answer.switch_s for answer in answers)),
        "prompt_eval_count": sum([answer.prompt_tokens for answer in answers]),
    }
    return {"model": text.expert, "embeddings": [row.tolist() for row in vectors_ND], **took}


def embedded_one(body: Embed, answers: Sequence[Answer], text: Text) -> dict[str, Any]:
    """The response of /api/embeddings, whose vector is as the expert makes it."""
    (vector_D,) = output_vectors(answers, text, body.dimensions)
    return {"embedding": vector_D.tolist()}


NOTHING: Mapping[str, Mapping[str, Any]] = {"embed": {"embeddings": []}, "embeddings": {"embedding": []}}

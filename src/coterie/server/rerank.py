"""POST /v1/rerank: a query and documents in, how well each answers it out, the best first.

Knows nothing about the engine. Source: the common part of Jina's and Cohere's rerank endpoints (their API
references); `raw_scores` is text-embeddings-inference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coterie.api import Answer, Query, Serving
from coterie.api.reranking import best_first, check_top_n, pair_of, reranker, scores_of
from coterie.api.texts import Text
from coterie.core.errors import RequestError
from coterie.server import fields
from coterie.server.embeddings import MAX_INPUTS, USE

SUPPORTED = ("model", "query", "documents", "top_n", "return_documents", "raw_scores", USE)


@dataclass(frozen=True, slots=True)
class RerankBody:
    """A validated request body: a query of each document, of one expert."""

    queries: tuple[Query, ...]
    documents: tuple[str, ...]
    expert: str
    top_n: int | None
    returns_documents: bool
    raw_scores: bool


def parse_rerank(body: object, coterie: Serving) -> RerankBody:
    """Turn a decoded JSON body into queries. Raises RequestError naming the field, NotFoundError."""
    given = fields.an_object(body, "model, query and documents")
    fields.check_names(given, SUPPORTED, {})
    query = fields.get(given, "query", str, "a text")
    if not query:
        raise RequestError("query", "is missing or empty", "give the text that documents are to answer")
    documents, top_n = _documents(given.get("documents")), fields.integer(given, "top_n")
    check_top_n(top_n)
    returns, raw = [fields.flag(given, name) for name in ("return_documents", "raw_scores")]
    use = fields.get(given, USE, str, "the name of a prompt") or ""
    expert = reranker(coterie.texts, coterie.composition, fields.model(given))
    scores_of((), coterie.texts[expert])  # before anything is asked
    coterie.texts[expert].embedding.before(use)
    queries = tuple([pair_of(query, document, expert, use) for document in documents])
    return RerankBody(queries, documents, expert, top_n, returns, raw)


def ranked(body: RerankBody, answers: Sequence[Answer], text: Text) -> dict[str, Any]:
    """The response, by the answers of the expert that `text` is of."""
    found = best_first(scores_of(answers, text, body.raw_scores), body.top_n)
    results = [
        {"index": one.index, "relevance_score": one.score}
        | ({"document": {"text": body.documents[one.index]}} if body.returns_documents else {})
        for one in found
    ]
    tokens = sum([answer.prompt_tokens for answer in answers])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body.expert, "results": results, "usage": usage}


def _documents(given: object) -> tuple[str, ...]:
    """Each document's text."""
    if not isinstance(given, list) or not given:
        raise RequestError("documents", "is missing, empty or no list", "give a list of texts")
    if len(given) > MAX_INPUTS:
        raise RequestError("documents", f"has {len(given)} items", f"send at most {MAX_INPUTS} at once")
    return tuple([_text(one, place) for place, one in enumerate(given)])


def _text(given: object, place: int) -> str:
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str):
        raise RequestError(f"documents[{place}]", "is no text", "give a text, or an object with a text")
    return text

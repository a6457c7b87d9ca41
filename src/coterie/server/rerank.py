"""POST /v1/rerank: a query and documents in, the documents' relevance scores out, best first.

    documents                     Jina, Cohere                      results
    documents, top_k, truncation  Voyage                            data
    texts, return_text            text-embeddings-inference         a bare list

Knows nothing about the engine. Source: the common part of Jina's and Cohere's rerank endpoints, and Voyage's (their API
references); text-embeddings-inference's (its OpenAPI description), whose `raw_scores` is accepted by all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from coterie.api import Answer, Query, Serving
from coterie.api.reranking import best_first, check_top_n, pair_of, reranker, scores_of
from coterie.api.texts import Text
from coterie.core.errors import RequestError
from coterie.server import fields
from coterie.server.embeddings import MAX_INPUTS, USE

_SHARED = ("model", "query", "raw_scores", USE)
TOP_N, TOP_K, TRUNCATION = "top_n", "top_k", "truncation"


class Form(Enum):
    """The format of a body: the fields for its documents, for returning them, and further ones."""

    JINA = ("documents", "return_documents", (TOP_N,))
    VOYAGE = ("documents", "return_documents", (TOP_N, TOP_K))
    TEI = ("texts", "return_text", (TOP_N,))  # which LiteLLM sends


# Documents that are too long are truncated at the end; fields that ask for this are accepted.
_CUTTING: Mapping[Form, Mapping[str, tuple[object, ...]]] = {
    Form.JINA: {},
    Form.VOYAGE: {TRUNCATION: (True,)},
    Form.TEI: {"truncate": (True,), "truncation_direction": ("right", "Right")},
}


@dataclass(frozen=True, slots=True)
class RerankBody:
    """A validated request body: a query for each document, for one expert."""

    queries: tuple[Query, ...]
    documents: tuple[str, ...]
    expert: str
    top_n: int | None
    returns_documents: bool
    raw_scores: bool
    form: Form = Form.JINA


def parse_rerank(body: object, coterie: Serving) -> RerankBody:
    """Turn a decoded JSON body into queries. Raises RequestError naming the field, NotFoundError."""
    given = fields.as_object(body, "model, query and documents")
    form = _form_of(given)
    holds, returning, more = form.value
    fields.check_names(given, (*_SHARED, holds, returning, *more), _CUTTING[form])
    query = fields.get(given, "query", str, "a text")
    if not query:
        raise RequestError("query", "is missing or empty", "give the text that documents are to answer")
    documents, top_n = _documents(given.get(holds), holds), _top_n(given)
    returns, raw = [fields.flag(given, name) for name in (returning, "raw_scores")]
    use = fields.get(given, USE, str, "the name of a prompt") or ""
    expert = reranker(coterie.texts, coterie.composition, _model(given, form))
    scores_of((), coterie.texts[expert])  # validates the expert early
    coterie.texts[expert].embedding.prompt(use)
    queries = tuple([pair_of(query, document, expert, use) for document in documents])
    return RerankBody(queries, documents, expert, top_n, returns, raw, form)


def _form_of(given: Mapping[str, object]) -> Form:
    if given.get("texts") is not None:
        if given.get("documents") is not None:
            raise RequestError("texts", "and documents were both given", "give one of them")
        return Form.TEI
    return Form.JINA if given.get(TOP_K) is None and given.get(TRUNCATION) is None else Form.VOYAGE


def _model(given: Mapping[str, object], form: Form) -> str:
    """The model asked; text-embeddings-inference serves only one, so its clients name none."""
    return "" if form is Form.TEI and given.get("model") is None else fields.model(given)


def _top_n(given: Mapping[str, object]) -> int | None:
    """The number of results, under either name. Raises RequestError."""
    top_n, top_k = [fields.integer(given, name) for name in (TOP_N, TOP_K)]
    if None not in (top_n, top_k) and top_n != top_k:
        raise RequestError(TOP_K, f"is {top_k}, while {TOP_N} is {top_n}", "give one of them")
    if top_n is None:
        check_top_n(top_k, TOP_K)
        return top_k
    check_top_n(top_n)
    return top_n


def ranked(body: RerankBody, answers: Sequence[Answer], text: Text) -> dict[str, Any] | list[dict[str, Any]]:
    """The response, from the answers of the expert of `text`."""
    found = best_first(scores_of(answers, text, body.raw_scores), body.top_n)
    score = "score" if body.form is Form.TEI else "relevance_score"
    results = [{"index": one.index, score: one.score, **_returned(body, one.index)} for one in found]
    if body.form is Form.TEI:
        return results
    tokens = sum([answer.prompt_tokens for answer in answers])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    name = "data" if body.form is Form.VOYAGE else "results"
    return {"object": "list", "model": body.expert, name: results, "usage": usage}


def _returned(body: RerankBody, index: int) -> dict[str, Any]:
    """A document in its format, if documents are to be returned."""
    if not body.returns_documents:
        return {}
    text = body.documents[index]
    if body.form is Form.TEI:
        return {"text": text}
    return {"document": text if body.form is Form.VOYAGE else {"text": text}}


def _documents(given: object, name: str) -> tuple[str, ...]:
    """The documents' texts, from the field of this name."""
    if not isinstance(given, list) or not given:
        raise RequestError(name, "is missing, empty or no list", "give a list of texts")
    if len(given) > MAX_INPUTS:
        raise RequestError(name, f"has {len(given)} items", f"send at most {MAX_INPUTS} at once")
    return tuple([_text(one, f"{name}[{place}]") for place, one in enumerate(given)])


def _text(given: object, where: str) -> str:
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str):
        raise RequestError(where, "is no text", "give a text, or an object with a text")
    return text

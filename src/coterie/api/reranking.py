"""Reranking: which expert scores, the query for a pair, and how scores become a ranking.

Knows nothing about HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coterie.api.embeddings import raw_vectors
from coterie.api.texts import Text
from coterie.api.types import Answer, Message, Query
from coterie.composition.composition import Composition
from coterie.core.errors import RequestError


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document, by its index in the request, and its score; higher is better."""

    index: int
    score: float


def reranker(texts: Mapping[str, Text], composition: Composition, model: str) -> str:
    """The expert whose scores are meant: the named one; for the composition's name the only one made for scoring.

    Raises NotFoundError for an unknown name, RequestError if there is none, or more than one.
    """
    if model and model != composition.name:
        return composition.expert(model).name
    found = [name for name, text in texts.items() if text.scoring and name in composition.names]
    if len(found) != 1:
        fact = f"{composition.name} has {len(found)} experts that score documents (reranking)"
        raise RequestError("model", fact, "name one of them" if found else "add one to it")
    return found[0]


def check_top_n(top_n: int | None, name: str = "top_n") -> None:
    """Raise RequestError for a `top_n` below 1."""
    if top_n is not None and top_n < 1:
        raise RequestError(name, f"is {top_n}", "allowed is 1 or more")


def pair_of(query: str, document: str, expert: str, use: str = "") -> Query:
    """The query for an expert's score of a document."""
    messages = Message("user", query), Message("document", document)
    return Query(messages, expert, raw=True, embeds=True, prompt_name=use, ranks=True)


def scores_of(answers: Sequence[Answer], text: Text, raw: bool = False) -> list[float]:
    """The scores of pairs, as the expert's files define them; `raw`: as its last layer gives them.

    Raises RequestError for an expert not made for scoring, and as `raw_vectors`.
    """
    if text.scoring is None:
        raise RequestError(text.expert, "was not made to score documents (reranking)", "name another expert")
    if not answers:
        return []
    scores_N = raw_vectors(answers, text)[:, 0].astype(np.float64)
    if text.scoring.is_sigmoid and not raw:
        scores_N = (1 + np.tanh(scores_N / 2)) / 2  # the sigmoid, without overflow
    return [float(score) for score in scores_N]


def best_first(scores: Sequence[float], top_n: int | None = None) -> list[Ranked]:
    """Documents by score, ties in the given order, at most `top_n`."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [Ranked(index, scores[index]) for index in order[:top_n]]

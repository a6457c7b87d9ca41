"""Measuring: vectors of texts, and how well documents answer a query.

Knows nothing about how queries are answered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from coterie.api.embeddings import embedder, output_vectors, query_of
from coterie.api.reranking import Ranked, best_first, check_top_n, pair_of, reranker, scores_of
from coterie.api.texts import Text
from coterie.api.types import Answer, Query
from coterie.composition.composition import Composition
from coterie.device import F32


class Measuring(ABC):
    """The part of a Coterie that gives vectors and scores."""

    composition: Composition
    texts: dict[str, Text]

    @abstractmethod
    def ask_all(self, queries: Sequence[Query | str]) -> list[Answer]:
        """The answers of queries, in order. Raises the first CoterieError, and then cancels the others."""

    def embed(
        self,
        texts: Sequence[str] | str,
        expert: str = "",
        use: str = "",
        dimensions: int | None = None,
        priority: int = 0,
    ) -> F32:
        """Vectors [N, D] of texts, by an expert; without a name by the only one that gives vectors alone.

        `use`: the name of the prompt to put before each, as the expert names them ("query", "document"). `dimensions`:
        keep only this many. `priority`: lower goes first, as for queries. Raises the first CoterieError, and then
        cancels the others.
        """
        name = embedder(self.texts, self.composition, expert)
        each = [texts] if isinstance(texts, str) else texts
        asked = [query_of(text, name, use) for text in each]
        return output_vectors(*self._by_the_same(asked, name, priority), dimensions)

    def rerank(
        self,
        query: str,
        documents: Sequence[str] | str,
        expert: str = "",
        use: str = "",
        top_n: int | None = None,
        priority: int = 0,
    ) -> list[Ranked]:
        """The documents that best answer a query, best first, with scores; by a named or the only reranking expert.

        `use`: the name of the prompt to put before the query, as the expert names them. `top_n`: at most this many.
        `priority`: lower goes first, as for queries.
        Raises the first CoterieError, and then cancels the others.
        """
        check_top_n(top_n)
        name = reranker(self.texts, self.composition, expert)
        each = [documents] if isinstance(documents, str) else documents
        pairs = [pair_of(query, document, name, use) for document in each]
        return best_first(scores_of(*self._by_the_same(pairs, name, priority)), top_n)

    def _by_the_same(self, queries: Sequence[Query], name: str, priority: int) -> tuple[list[Answer], Text]:
        """An expert's answers, all from one version of its files, and its Text; retried if files change meanwhile."""
        asked = [replace(query, priority=priority) for query in queries]
        while True:
            text, answers = self.texts[name], self.ask_all(asked)
            if self.texts[name] is text:
                return answers, text

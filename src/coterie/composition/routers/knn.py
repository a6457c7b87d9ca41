"""The knn router: the k labelled examples most similar to the prompt vote for their experts.

Knows nothing about files or about how similarity is computed: from character n-grams (neighbours.py), or from
embeddings of the prompt and the examples by the router's own model (vector_neighbours.py).

    votes        each of the k nearest examples gives its expert (its similarity / that of the nearest)^6
    confidence   an expert's share of all votes; if the nearest example is less similar than `similarity`, all shares
                 are scaled down in proportion, so that they sum to less than 1

If no example reaches `similarity`, the fallback answers. The fallback's own examples describe what is out of scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from coterie.composition.router import NO_TEXT, Ask, Prompt, Result, Route, fall_back, ranked, too_unsure
from coterie.composition.routers.llm import ROUTER
from coterie.composition.routers.neighbours import Neighbour, Neighbours
from coterie.composition.routers.vector_neighbours import VectorNeighbours

NUM_NEIGHBOURS = 5
SIMILARITY = 0.15
THRESHOLD = 0.5
VOTE_POWER = 6  # 10 % less similar counts about half, so that a few near examples are not outvoted by many far ones
NUM_REASONS = 2
MAX_CHARS = 4096  # characters of a prompt or example that are embedded, as many as are read for n-grams


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt that an expert should answer."""

    expert: str
    text: str


@dataclass(frozen=True, slots=True)
class KnnSettings:
    """How many examples vote, and the similarity and confidence in [0, 1] below which the fallback answers."""

    num_neighbours: int = NUM_NEIGHBOURS
    similarity: float = SIMILARITY
    threshold: float = THRESHOLD


class KnnRouter:
    """Chooses the expert whose examples are most similar to the prompt; the fallback if none is, or none clearly."""

    def __init__(
        self, examples: Sequence[Example], fallback: str, settings: KnnSettings | None = None, by_vectors: bool = False
    ) -> None:
        """`by_vectors`: compare embeddings by a model; call `taught` with the examples' before the first decision."""
        self.fallback, self.settings, self.by_vectors = fallback, settings or KnnSettings(), by_vectors
        examples = [example for example in examples if example.text.strip()] if by_vectors else examples
        self._names = tuple(dict.fromkeys(example.expert for example in examples))
        self.texts, labels = [e.text for e in examples], {name: label for label, name in enumerate(self._names)}
        self._labels = [labels[example.expert] for example in examples]
        self.neighbours = Neighbours([], []) if by_vectors else Neighbours(self.texts, self._labels)
        self.vectors: VectorNeighbours | None = None

    @property
    def asks_for_examples(self) -> tuple[Ask, ...]:
        """Requests for the examples' embeddings, in the order that `taught` expects."""
        return tuple([_ask(text) for text in self.texts]) if self.by_vectors else ()

    def taught(self, vectors: Sequence[Sequence[float]]) -> KnnRouter:
        """A copy of this router with the embeddings of its examples."""
        other = copy(self)
        other.vectors = VectorNeighbours(self.texts, self._labels, np.array(vectors, np.float32))
        return other

    def tuned(self, settings: KnnSettings) -> KnnRouter:
        """A copy with other settings, which shares the index of the examples."""
        other = copy(self)
        other.settings = settings
        return other

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """A request for the prompt's embedding if vectors are compared, else nothing."""
        return (_ask(prompt.text),) if self.by_vectors and prompt.text.strip() else ()

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """The route of the last user message."""
        if not prompt.text.strip():
            return fall_back(self.fallback, {}, NO_TEXT)
        nearest = self._nearest(prompt, results)
        if not nearest:
            return fall_back(self.fallback, {}, "it is like no example")
        confidences = self._confidences(nearest)
        best = max(confidences, key=lambda name: confidences[name])
        share, closest = confidences[best], nearest[0].similarity
        if closest < self.settings.similarity:
            whose, least = self._names[nearest[0].label], self.settings.similarity
            reason = f"the nearest example, {_alike(nearest[0])} of {whose}, is less similar than {least:.2f}"
            return fall_back(self.fallback, confidences, reason)
        listed = ", ".join([_alike(found) for found in nearest if self._names[found.label] == best][:NUM_REASONS])
        if best == self.fallback:
            return fall_back(self.fallback, confidences, f"it resembles what no other expert answers: {listed}")
        if share < self.settings.threshold:
            reason = too_unsure(best, share, self.settings.threshold)
            return fall_back(self.fallback, confidences, f"{reason}; nearest: {listed}")
        return Route(best, share, ranked(confidences, best), f"nearest: {listed}")

    def _nearest(self, prompt: Prompt, results: Sequence[Result]) -> tuple[Neighbour, ...]:
        if not self.by_vectors:
            return self.neighbours.nearest(prompt.text, self.settings.num_neighbours)
        if self.vectors is None or not results or isinstance(results[0], str):
            raise RuntimeError("a knn router decides by vectors that nobody gave it")
        return self.vectors.nearest(results[0], self.settings.num_neighbours)

    def _confidences(self, nearest: Sequence[Neighbour]) -> dict[str, float]:
        closest = nearest[0].similarity
        votes: dict[str, float] = {}
        for found in nearest:
            name = self._names[found.label]
            votes[name] = votes.get(name, 0.0) + (found.similarity / closest) ** VOTE_POWER
        sure = min(1.0, closest / self.settings.similarity) if self.settings.similarity else 1.0
        scale = sure / sum(votes.values())
        return {name: min(1.0, vote * scale) for name, vote in votes.items()}


def _ask(text: str) -> Ask:
    return Ask(ROUTER, text[:MAX_CHARS], 0, embeds=True)


def _alike(found: Neighbour) -> str:
    return f"{found.text!r} ({found.similarity:.2f})"

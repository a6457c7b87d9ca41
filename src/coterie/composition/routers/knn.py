"""The knn router: the k labelled examples that are most like the prompt vote for their experts.

Knows nothing about files, nor how likeness is found (neighbours.py does).

    votes        (similarity / the nearest one's)^6 of each of the k nearest, for its expert
    confidence   an expert's share of all votes; all shares shrink in proportion where the nearest example is less alike
                 than `similarity`: what is left over is nobody's

Below `similarity` a prompt is like no example, and the fallback answers. The fallback's own examples say what is out of
scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from coterie.composition.router import Ask, Prompt, Route, ranked
from coterie.composition.routers.neighbours import Neighbour, Neighbours

NUM_NEIGHBOURS = 5
SIMILARITY = 0.15
THRESHOLD = 0.5
VOTE_POWER = 6  # a tenth less alike counts about half, so that few near examples are not outvoted by many far ones
NUM_REASONS = 2


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt that an expert should answer."""

    expert: str
    text: str


@dataclass(frozen=True, slots=True)
class KnnSettings:
    """How many examples vote, how alike the nearest must be, and how sure the router. Shares in [0, 1]."""

    num_neighbours: int = NUM_NEIGHBOURS
    similarity: float = SIMILARITY
    threshold: float = THRESHOLD


class KnnRouter:
    """Chooses the expert whose examples the prompt is most like, or the fallback when none is, or none clearly."""

    def __init__(self, examples: Sequence[Example], fallback: str, settings: KnnSettings | None = None) -> None:
        self.fallback, self.settings = fallback, settings or KnnSettings()
        self._names = tuple(dict.fromkeys(example.expert for example in examples))
        labels = {name: label for label, name in enumerate(self._names)}
        self.neighbours = Neighbours([e.text for e in examples], [labels[e.expert] for e in examples])

    def tuned(self, settings: KnnSettings) -> KnnRouter:
        """A router of the same examples, which are not indexed again."""
        other = copy(self)
        other.settings = settings
        return other

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """Nothing: the text is enough."""
        return ()

    def decide(self, prompt: Prompt, results: Sequence[str] = ()) -> Route:
        """The route of the last user message."""
        if not prompt.text.strip():
            return Route(self.fallback, 0.0, (), "there is no text to read", is_fallback=True)
        nearest = self.neighbours.nearest(prompt.text, self.settings.num_neighbours)
        if not nearest:
            return Route(self.fallback, 0.0, (), "it is like no example", is_fallback=True)
        confidences = self._confidences(nearest)
        best = max(confidences, key=lambda name: confidences[name])
        share, closest = confidences[best], nearest[0].similarity
        if closest < self.settings.similarity:
            whose, least = self._names[nearest[0].label], self.settings.similarity
            reason = f"the nearest example, {_alike(nearest[0])} of {whose}, is less alike than {least:.2f}"
            return self._fall_back(confidences, reason)
        told = ", ".join([_alike(found) for found in nearest if self._names[found.label] == best][:NUM_REASONS])
        if best == self.fallback:
            return self._fall_back(confidences, f"it is like what no other expert answers: {told}")
        if share < self.settings.threshold:
            reason = f"the best expert, {best}, has {share:.0%}, below the threshold of {self.settings.threshold:.0%}"
            return self._fall_back(confidences, f"{reason}; nearest: {told}")
        return Route(best, share, ranked(confidences, best), f"nearest: {told}")

    def _confidences(self, nearest: Sequence[Neighbour]) -> dict[str, float]:
        closest = nearest[0].similarity
        votes: dict[str, float] = {}
        for found in nearest:
            name = self._names[found.label]
            votes[name] = votes.get(name, 0.0) + (found.similarity / closest) ** VOTE_POWER
        sure = min(1.0, closest / self.settings.similarity) if self.settings.similarity else 1.0
        scale = sure / sum(votes.values())
        return {name: min(1.0, vote * scale) for name, vote in votes.items()}

    def _fall_back(self, confidences: dict[str, float], reason: str) -> Route:
        share = confidences.get(self.fallback, 0.0)
        return Route(self.fallback, share, ranked(confidences, self.fallback), reason, is_fallback=True)


def _alike(found: Neighbour) -> str:
    return f"{found.text!r} ({found.similarity:.2f})"

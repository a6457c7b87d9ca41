"""The interface of a router: two pure steps, `ask` and `decide`; the engine answers what is asked in between.

    prompt -> ask -> (asks) -> the engine answers them -> decide(prompt, answers) -> Route

Knows nothing about composition files, engines or any one kind of router.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

NO_TEXT = "there is no text to read"
UNLIKELY = 0.005  # runners-up below half a percent are left out of a Route


@dataclass(frozen=True, slots=True)
class Prompt:
    """A router's input: `text` is the last user message; `messages` the whole conversation, if there is one."""

    text: str
    messages: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """The prompt of a conversation of {"role", "content"} messages; `text` is empty without a user message."""
        texts = [m["content"] for m in messages if m["role"] == "user"]
        return cls(texts[-1] if texts else "", tuple(messages))


Result: TypeAlias = str | tuple[float, ...]
"""The result of an Ask: a generated answer, or an embedding."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a router wants from a model before it decides: an answer to `text` or, if `embeds`, its embedding."""

    expert: str
    text: str
    max_tokens: int
    embeds: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A routing decision. `confidence` is the router's in `expert`, in [0, 1]; `reason` explains the choice in words.

    `runners_up` are the other experts and their confidences, best first, without those below UNLIKELY.
    `is_fallback`: the fallback was chosen because the router was unsure or found that no expert fits.
    """

    expert: str
    confidence: float
    runners_up: tuple[tuple[str, float], ...]
    reason: str
    is_fallback: bool = False

    def confidence_in(self, expert: str) -> float:
        """The router's confidence in that expert; 0 if it is too small to be listed."""
        return self.confidence if expert == self.expert else dict(self.runners_up).get(expert, 0.0)

    def moved(self, expert: str, reason: str) -> Route:
        """This route redirected to another expert, for `reason`; not a fallback."""
        confidences = {**dict(self.runners_up), self.expert: self.confidence}
        return Route(expert, self.confidence_in(expert), ranked(confidences, expert), reason)

    def to_dict(self) -> dict[str, Any]:
        """The route as JSON-compatible values."""
        return {
            "expert": self.expert,
            "confidence": round(self.confidence, 4),
            "is_fallback": self.is_fallback,
            "reason": self.reason,
            "runners_up": [{"expert": name, "confidence": round(share, 4)} for name, share in self.runners_up],
        }


class Router(Protocol):
    """Chooses an expert for a prompt, in two steps without side effects: the same input gives the same Route."""

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """Questions that models must answer first; empty for routers that only read the text."""

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """The decision, given the answers to `ask`, in its order."""


def fall_back(fallback: str, confidences: Mapping[str, float], reason: str) -> Route:
    """A route to the fallback, for `reason`."""
    return Route(fallback, confidences.get(fallback, 0.0), ranked(confidences, fallback), reason, is_fallback=True)


def too_unsure(best: str, share: float, threshold: float) -> str:
    """The reason for a fallback because the best expert's share is below the threshold."""
    return f"the best expert, {best}, has {share:.0%}, below the threshold of {threshold:.0%}"


def ranked(confidences: Mapping[str, float], chosen: str) -> tuple[tuple[str, float], ...]:
    """The runners_up of a Route: all experts but the chosen one and the unlikely ones, best first, ties by name."""
    others = [(name, share) for name, share in confidences.items() if name != chosen and share >= UNLIKELY]
    return tuple(sorted(others, key=lambda item: (-item[1], item[0])))

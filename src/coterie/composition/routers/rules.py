"""The rules router: keywords, regular expressions, length and language, in the order of the composition file.

Knows nothing about files: each rule comes as a table that was read from one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coterie.composition.router import Ask, Prompt, Result, Route, fall_back, ranked, too_unsure
from coterie.composition.routers.language import guess_language
from coterie.core.errors import CompositionError

Match = Literal["first", "weight"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; it holds if all the conditions it gives hold. Lengths are in characters.

    `keywords`: one of them must occur as a whole word or phrase. `weight` is used with match "weight", `confidence`
    with match "first".
    """

    name: str
    expert: str
    keywords: re.Pattern[str] | None = None
    pattern: re.Pattern[str] | None = None
    min_chars: int = 0
    max_chars: int | None = None
    language: str | None = None
    weight: float = 1.0
    confidence: float = 1.0

    def why(self, text: str) -> str | None:
        """The rule's conditions in words if all hold, else None."""
        reasons: list[str] = []
        for kind, pattern in (("the word", self.keywords), ("the pattern found", self.pattern)):
            if pattern is not None:
                found = pattern.search(text)
                if found is None:
                    return None
                reasons.append(f"{kind} {found[0][:40]!r}")
        if len(text) < self.min_chars or (self.max_chars is not None and len(text) > self.max_chars):
            return None
        if self.min_chars or self.max_chars is not None:
            reasons.append(f"its length of {len(text)} characters")
        if self.language is not None:
            if guess_language(text) != self.language:
                return None
            reasons.append(f"its language {self.language}")
        return " and ".join(reasons)


def rule_of(table: Mapping[str, Any], number: str, where: str) -> Rule:
    """The rule in a table of a composition file. Raises CompositionError."""
    name, pattern = table.get("name", number), None
    if "pattern" in table:
        try:
            pattern = re.compile(table["pattern"])
        except re.error as error:
            fact = f"rule {name}: pattern = {table['pattern']!r} is not a regular expression: {error}"
            raise CompositionError(f"{where}.pattern", fact, "mend the pattern") from error
    low, high = table.get("min_chars", 0), table.get("max_chars")
    if high is not None and low > high:
        fact = f"rule {name}: min_chars = {low} is above max_chars = {high}, so it never holds"
        raise CompositionError(where, fact, "make min_chars the smaller one")
    return Rule(
        name=name,
        expert=table["expert"],
        keywords=compile_keywords(table["keywords"]) if "keywords" in table else None,
        pattern=pattern,
        min_chars=low,
        max_chars=high,
        language=table.get("language"),
        weight=float(table.get("weight", 1.0)),
        confidence=float(table.get("confidence", 1.0)),
    )


def compile_keywords(keywords: Sequence[str]) -> re.Pattern[str]:
    """One pattern for all keywords: case-insensitive, whole words, any white space inside a phrase."""
    phrases = [r"\s+".join(map(re.escape, keyword.split())) for keyword in keywords]
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)


class RulesRouter:
    """Chooses by the first rule that holds, or by the summed weights of all that hold; the fallback if none does.

    With match "weight" an expert's confidence is its share of the total weight of the rules that hold.
    """

    def __init__(self, rules: Sequence[Rule], fallback: str, threshold: float = 0.0, match: Match = "first") -> None:
        self.rules, self.fallback, self.threshold, self.match = tuple(rules), fallback, threshold, match

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """Nothing: rules read the text alone."""
        return ()

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """The route of the last user message."""
        held = [(rule, why) for rule in self.rules if (why := rule.why(prompt.text)) is not None]
        if not held:
            return fall_back(self.fallback, {}, f"none of {len(self.rules)} rules holds")
        first = held[0][0]
        by_weight = self.match == "weight"
        confidences = _shares([rule for rule, _ in held]) if by_weight else {first.expert: first.confidence}
        best = max(confidences, key=lambda name: confidences[name])
        share = confidences[best]
        if share < self.threshold and best != self.fallback:
            return fall_back(self.fallback, confidences, too_unsure(best, share, self.threshold))
        reason = "; ".join(f"rule {rule.name}: {why}" for rule, why in held if rule.expert == best)
        return Route(best, share, ranked(confidences, best), reason)


def _shares(rules: Sequence[Rule]) -> dict[str, float]:
    """Each expert's share of the total weight of these rules."""
    total = sum(rule.weight for rule in rules)
    weights: dict[str, float] = {}
    for rule in rules:
        weights[rule.expert] = weights.get(rule.expert, 0.0) + rule.weight
    return {name: weight / total if total else 0.0 for name, weight in weights.items()}

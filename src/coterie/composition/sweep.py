"""How a router's settings trade off on questions with known experts: one point per value tried.

Knows nothing about routers: routes are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from coterie.composition.evaluate import Question, share
from coterie.composition.router import Route

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(10))
SIMILARITIES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A setting's value, and its outcome as shares of questions.

    Of the in-scope questions, those routed right and those sent to the fallback instead; of the out-of-scope ones,
    those sent to the fallback (None if there are none).
    """

    setting: str
    value: float
    in_scope_right: float
    in_scope_to_fallback: float
    out_of_scope_to_fallback: float | None


def sweep_point(setting: str, value: float, questions: Sequence[Question], routes: Sequence[Route]) -> SweepPoint:
    """The point for these routes, in the order of the questions. Raises ValueError if no question is in scope."""
    both = list(zip(questions, routes, strict=True))
    inside = [(question, route) for question, route in both if question.expert is not None]
    outside = [route.is_fallback for question, route in both if question.expert is None]
    return SweepPoint(
        setting=setting,
        value=value,
        in_scope_right=share(route.expert == question.expert for question, route in inside),
        in_scope_to_fallback=share(route.is_fallback and route.expert != question.expert for question, route in inside),
        out_of_scope_to_fallback=share(outside) if outside else None,
    )


def sweep_thresholds(questions: Sequence[Question], routes: Sequence[Route], fallback: str) -> Iterator[SweepPoint]:
    """One point for each of THRESHOLDS, from routes made with a threshold of 0."""
    for threshold in THRESHOLDS:
        yield sweep_point("threshold", threshold, questions, [_at(route, threshold, fallback) for route in routes])


def _at(route: Route, threshold: float, fallback: str) -> Route:
    if route.confidence >= threshold or route.expert == fallback:
        return route
    return replace(route, expert=fallback, is_fallback=True)

"""Scores routes and answers to held-out questions, without running anything.

Knows nothing about engines: routes and answers are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coterie.composition.router import Route
from coterie.core.errors import CompositionError
from coterie.core.grouped import grouped
from coterie.core.lines import json_lines


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question. `expert` and `answer` are None when it is out of scope: only the fallback may take it.

    `answer` is also None if only the routing of the question is scored.
    """

    text: str
    expert: str | None
    answer: str | None
    seen_phrasing: bool = True


@dataclass(frozen=True, slots=True)
class ExpertRow:
    """One line of the table: shares of the questions that belong to this expert, in [0, 1].

    `alone`: exact matches when this expert answers all of them. `routed`: when the routed expert answers.
    `single_model`: when the fallback answers all of them. None if those answers were not given.
    """

    expert: str
    num_questions: int
    routed_here: float
    alone: float | None
    routed: float | None
    single_model: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """Shares over all in-scope questions, one row per expert, and where the out-of-scope questions went.

    `router` is the share of in-scope questions that reached their expert, `router_unseen` the same for phrasings never
    trained on (None without such questions). `confusions`: (right expert, chosen expert, count), most frequent first.
    """

    num_questions: int
    router: float
    router_unseen: float | None
    experts_alone: float | None
    composition: float | None
    single_model: float | None
    num_out_of_scope: int
    out_of_scope_to_fallback: int
    experts: tuple[ExpertRow, ...]
    confusions: tuple[tuple[str, str, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """The score as plain values, for JSON; `experts` maps a name to its exact match on its own skill."""
        return {
            "composition": self.composition,
            "router": self.router,
            "router_unseen_phrasings": self.router_unseen,
            "experts_alone": self.experts_alone,
            "single_model": self.single_model,
            "num_questions": self.num_questions,
            "out_of_scope": {"questions": self.num_out_of_scope, "to_fallback": self.out_of_scope_to_fallback},
            "experts": {row.expert: row.alone for row in self.experts},
            "rows": [asdict(row) for row in self.experts],
            "confusions": [{"right": a, "chosen": b, "count": n} for a, b, n in self.confusions],
        }


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read questions, one JSON object per line: prompt, expert, and optionally answer and seen_phrasing.

    An expert of null, or "", means out of scope. Raises NotFoundError, or CompositionError naming the line.
    """
    return tuple(_question(values, where) for where, values in json_lines(path, "questions", CompositionError))


def _question(values: Mapping[str, Any], where: str) -> Question:
    remedy = "write prompt and expert as texts, and answer if it is known (expert null where no expert fits)"
    prompt = values.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise CompositionError(where, "there is no prompt in this line", remedy)
    expert, answer = values.get("expert"), values.get("answer")
    if not isinstance(expert, str | None) or not isinstance(answer, str | None):
        raise CompositionError(where, f"expert = {expert!r} or answer = {answer!r} is no text", remedy)
    return Question(prompt, expert or None, answer if expert else None, bool(values.get("seen_phrasing", True)))


def limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` questions per expert, and out of scope; half of them in unseen phrasings, if there are enough."""
    if limit is None:
        return list(questions)
    there = Counter((question.expert, question.seen_phrasing) for question in questions)
    taken: Counter[tuple[str | None, bool]] = Counter()
    chosen = []
    for question in questions:
        half = limit // 2 if question.seen_phrasing else limit - limit // 2
        key = (question.expert, question.seen_phrasing)
        taken[key] += 1
        if taken[key] <= max(half, limit - there[question.expert, not question.seen_phrasing]):
            chosen.append(question)
    return chosen


def last_line(text: str) -> str:
    """The last non-blank line, stripped: the part of an answer that is scored."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def is_exact(answer: str, expected: str) -> bool:
    """Whether the last line of an answer equals the expected one exactly."""
    return last_line(answer) == last_line(expected)


def score(
    questions: Sequence[Question],
    routes: Sequence[Route],
    routed: Sequence[str] | None = None,
    alone: Sequence[str] | None = None,
    single_model: Sequence[str] | None = None,
) -> Score:
    """Score routes and, if given, answers, all in the order of the questions (out-of-scope ones included).

    `routed`: answers of the chosen experts. `alone`: answers of the experts that the questions belong to.
    `single_model`: answers of one model to all questions.

    Raises ValueError when the lengths differ or no question is in scope.
    """
    answers = {"routes": routes, "routed": routed, "alone": alone, "single_model": single_model}
    for name, given in answers.items():
        if given is not None and len(given) != len(questions):
            raise ValueError(f"there are {len(questions)} questions but {len(given)} {name}")
    inside = [i for i, question in enumerate(questions) if question.expert is not None]
    if not inside:
        raise ValueError(f"none of {len(questions)} questions belongs to an expert")
    right = {i: routes[i].expert == questions[i].expert for i in inside}
    exact = {name: _exact(questions, inside, given) for name, given in
             (("routed", routed), ("alone", alone), ("single_model", single_model))}  # fmt: skip
    unseen = [right[i] for i in inside if not questions[i].seen_phrasing]
    by_expert = grouped((str(questions[i].expert), i) for i in inside)
    outside = [route for question, route in zip(questions, routes, strict=True) if question.expert is None]
    return Score(
        num_questions=len(inside),
        router=share(right.values()),
        router_unseen=share(unseen) if unseen else None,
        experts_alone=_share_of(exact["alone"], inside),
        composition=_share_of(exact["routed"], inside),
        single_model=_share_of(exact["single_model"], inside),
        num_out_of_scope=len(outside),
        out_of_scope_to_fallback=sum(route.is_fallback for route in outside),
        experts=tuple(_row(name, indices, right, exact) for name, indices in by_expert.items()),
        confusions=confusions([questions[i] for i in inside], [routes[i] for i in inside]),
    )


def confusions(questions: Sequence[Question], routes: Sequence[Route]) -> tuple[tuple[str, str, int], ...]:
    """(right expert, chosen expert, count) for the in-scope questions routed wrongly, most frequent pair first."""
    pairs = zip(questions, routes, strict=True)
    wrong = Counter((q.expert, r.expert) for q, r in pairs if q.expert is not None and q.expert != r.expert)
    found = [(str(right), chosen, count) for (right, chosen), count in wrong.items()]
    return tuple(sorted(found, key=lambda item: (-item[2], item[0], item[1])))


def share(outcomes: Iterable[bool]) -> float:
    """The share of outcomes that are true. Raises ValueError if there are none."""
    counted = list(outcomes)
    if not counted:
        raise ValueError("a share of nothing has no value")
    return sum(counted) / len(counted)


def _exact(questions: Sequence[Question], inside: Sequence[int], given: Sequence[str] | None) -> dict[int, bool] | None:
    if given is None:
        return None
    return {i: is_exact(given[i], str(questions[i].answer)) for i in inside}


def _share_of(outcomes: Mapping[int, bool] | None, indices: Sequence[int]) -> float | None:
    return None if outcomes is None else share(outcomes[i] for i in indices)


def _row(
    name: str, indices: Sequence[int], right: Mapping[int, bool], exact: Mapping[str, Mapping[int, bool] | None]
) -> ExpertRow:
    return ExpertRow(
        expert=name,
        num_questions=len(indices),
        routed_here=share(right[i] for i in indices),
        alone=_share_of(exact["alone"], indices),
        routed=_share_of(exact["routed"], indices),
        single_model=_share_of(exact["single_model"], indices),
    )

"""`coterie eval`: scores router, experts, composition and a single model on held-out questions.

If the questions have no answers, or with --router-only, no expert runs, and the router's settings are swept.

Knows nothing about how questions were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from coterie.api import Coterie, Options, Query
from coterie.api.sampling import GREEDY
from coterie.cli.opening import with_options
from coterie.cli.options import CompositionArg, JsonOpt, out, print_json, report_errors
from coterie.cli.route import routes_by, routes_of
from coterie.composition.composition import Composition, RouterSpec, load_composition
from coterie.composition.evaluate import Question, Score, is_exact, limited, read_questions, score
from coterie.composition.routing import Routing
from coterie.composition.sweep import SIMILARITIES, SweepPoint, sweep_point, sweep_thresholds
from coterie.core.errors import CompositionError, NotFoundError

QUESTIONS = "questions.jsonl"
NAME_CHARS = 16  # minimum width of expert names in an 80-column table; longer names are folded


@report_errors
@with_options("near", "speculate", "device", "threads", "activations", "kv_type")
def evaluate(
    composition: CompositionArg,
    questions: Annotated[
        Path | None, typer.Option(help="A JSON Lines file; default: questions.jsonl next to the composition file.")
    ] = None,
    router_only: Annotated[bool, typer.Option("--router-only", help="Score the router alone; run no expert.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many questions per expert.")] = None,
    show_wrong: Annotated[int, typer.Option(help="Print this many wrong answers.")] = 0,
    json_: JsonOpt = False,
    *,
    how: Options,
) -> None:
    """Score experts, router, composition and the single fallback model on held-out questions (exact last lines).

    Questions without answers score the router alone, at several thresholds.
    """
    found = load_composition(composition)
    spec = found.router
    if spec is None:
        fact = "has no router, so there is nothing to compare"
        raise CompositionError(found.name, fact, "give it a [router] with a fallback")
    path = questions or found.root / QUESTIONS
    asked = limited(_checked(read_questions(path), found, path), limit)
    if router_only or not _have_answers(asked, path):
        _evaluate_router(found, spec, asked, json_)
        return
    with Coterie(found, replace(how, sampling=GREEDY)) as coterie:
        routes = [coterie.route(Query.text(q.text)) for q in asked]
        # Greedy answers depend only on prompt and expert, so each distinct pair is asked once.
        both = list(zip(asked, routes, strict=True))
        asks = ((q.text, name) for q, r in both if q.expert for name in (q.expert, r.expert, spec.fallback))
        pairs = list(dict.fromkeys(asks))
        answers = coterie.ask_all([Query.text(text, expert) for text, expert in pairs])
        texts = {pair: answer.text for pair, answer in zip(pairs, answers, strict=True)}
        result = score(
            asked,
            routes,
            routed=[texts[q.text, r.expert] if q.expert else "" for q, r in both],
            alone=[texts[q.text, q.expert] if q.expert else "" for q in asked],
            single_model=[texts[q.text, spec.fallback] if q.expert else "" for q in asked],
        )
        if json_:
            print_json(result.to_dict())
            return
        _print(found.name, result)
        for q, r in [(q, r) for q, r in both if _wrong(q, texts, r.expert)][:show_wrong]:
            given = texts[q.text, r.expert]
            out.print(escape(f"{q.text!r} -> {r.expert}: {given!r}, right is {q.answer!r}"))


def _checked(questions: tuple[Question, ...], composition: Composition, path: Path) -> tuple[Question, ...]:
    named = {question.expert for question in questions} - {None}
    if not named:
        raise CompositionError(str(path), "no question belongs to an expert", "add some with an expert")
    own: dict[str | None, str | None] = {None: None}
    for name in sorted(map(str, named)):
        try:
            own[name] = composition.expert(name).name
        except NotFoundError as error:
            raise CompositionError(str(path), error.fact, error.remedy) from None
    return tuple([replace(question, expert=own[question.expert]) for question in questions])


def _have_answers(asked: list[Question], path: Path) -> bool:
    inside = [question.answer is not None for question in asked if question.expert is not None]
    if any(inside) and not all(inside):
        fact = f"{inside.count(False)} of {len(inside)} questions of experts have no answer"
        raise CompositionError(str(path), fact, "give all of them an answer, or none, or use --router-only")
    return all(inside)


def _evaluate_router(composition: Composition, spec: RouterSpec, asked: list[Question], json_: bool) -> None:
    texts = [question.text for question in asked]
    routing = Routing(composition) if spec.model is None else None
    result = score(asked, routes_of(composition, texts) if routing is None else routes_by(routing, texts))
    points = [] if routing is None else list(_swept(routing, spec, asked))
    if json_:
        print_json({**result.to_dict(), "sweep": [asdict(point) for point in points]})
        return
    _print(composition.name, result)
    table = Table("setting", "value", "in scope, right", "in scope, to the fallback", "out of scope, to the fallback")
    for point in points:
        shares = (point.in_scope_right, point.in_scope_to_fallback, point.out_of_scope_to_fallback)
        table.add_row(point.setting, f"{point.value:.2f}", *(_share(value) for value in shares))
    if points:
        out.print(table)


def _swept(routing: Routing, spec: RouterSpec, asked: list[Question]) -> Iterator[SweepPoint]:
    """Sweep points for each setting of this kind of router; none if it asks a model."""
    texts = [question.text for question in asked]
    if spec.kind in ("rules", "lexical", "knn"):
        sure = routing.tuned(replace(spec, threshold=0.0))
        yield from sweep_thresholds(asked, routes_by(sure, texts), spec.fallback)
    if spec.kind == "knn":
        for value in SIMILARITIES:
            tried = routing.tuned(replace(spec, similarity=value))
            yield sweep_point("similarity", value, asked, routes_by(tried, texts))


def _wrong(question: Question, texts: dict[tuple[str, str], str], routed: str) -> bool:
    return question.answer is not None and not is_exact(texts[question.text, routed], question.answer)


def _print(name: str, result: Score) -> None:
    answered = () if result.composition is None else ("expert alone", "composition", "single model")
    widest = max((len(row.expert) for row in result.experts), default=0)
    names = Column("expert", overflow="fold", min_width=min(NAME_CHARS, widest))
    table = Table(names, "asked", "routed to it", *answered, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in result.experts:
        shares = [row.routed_here, row.alone, row.routed, row.single_model][: len(answered) + 1]
        table.add_row(escape(row.expert), str(row.num_questions), *map(_share, shares))
    totals = [result.router, result.experts_alone, result.composition, result.single_model][: len(answered) + 1]
    table.add_section()
    table.add_row("all", str(result.num_questions), *map(_share, totals))
    out.print(table)
    to_fallback, outside = result.out_of_scope_to_fallback, result.num_out_of_scope
    out.print(
        f"{escape(name)}: router {_share(result.router)} (unseen phrasings {_share(result.router_unseen)});", end=" "
    )
    out.print(f"out of scope to the fallback: {to_fallback} of {outside}")
    for right, chosen, count in result.confusions[:5]:
        out.print(f"[dim]{count} questions for {escape(right)} went to {escape(chosen)}[/dim]")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"

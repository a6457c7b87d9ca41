"""The demo as it ships: it fits, it routes, its experts beat the single model, and its README says how it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coterie.api import Coterie
from coterie.cli.main import app
from coterie.composition.composition import load_composition

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "eval-demo.json"


def evaluate(*options: str) -> dict:
    result = CliRunner().invoke(app, ["eval", "demo", "--json", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_sixteen_experts_and_a_fallback_share_one_program() -> None:
    with Coterie.open("demo") as coterie:
        assert len(coterie.models) >= 17
        assert len({model.key for model in coterie.models.values()}) == 1
        assert coterie.plan.total_bytes <= 24_000_000


@pytest.mark.parametrize(
    ("question", "expert", "answer"),
    [
        ("What is 47 plus 85?", "arithmetic", "132"),
        ("Write 149 in Roman numerals", "roman-numerals", "CXLIX"),
        ("What day of the week was 4 July 1976?", "weekday", "Sunday"),
    ],
)
def test_questions_in_words_get_right_answers(question: str, expert: str, answer: str) -> None:
    with Coterie.open("demo") as coterie:
        got = coterie.ask(question)
    assert (got.expert, got.last_line) == (expert, answer)


def test_some_questions_of_every_skill() -> None:
    got = evaluate("--limit", "6")
    assert got["composition"] > got["single_model"]
    assert got["router"] >= 0.9
    assert got["out_of_scope"]["to_fallback"] == got["out_of_scope"]["questions"]


def test_the_single_model_took_as_many_steps_as_base_and_experts_together() -> None:
    reports = {
        e.name: json.loads((e.checkpoint / "training.json").read_text()) for e in load_composition("demo").experts
    }
    single = reports.pop("general")
    assert {report["base_steps"] for report in reports.values()} == {single["base_steps"]}
    assert single["settings"]["steps"] == sum(report["settings"]["steps"] for report in reports.values())


@pytest.mark.long
def test_the_stored_result_is_what_eval_prints() -> None:
    stored, got = json.loads(RESULT.read_text()), evaluate()
    assert got["out_of_scope"] == stored["out_of_scope"]
    for key in ("composition", "router", "single_model", "experts_alone"):
        # Instruction sets round differently in the last bit, which can turn a near tie between two tokens.
        assert got[key] == pytest.approx(stored[key], abs=0.005)


def readme_table() -> str:
    """The table of demo/README.md, from the stored result and the composition's descriptions."""
    stored = json.loads(RESULT.read_text())
    lines = ["| expert | what it does, and its range | alone | composition | single model |", "|---|---|---|---|---|"]
    described = {expert.name: expert.description for expert in load_composition("demo").experts}
    for row in stored["rows"]:
        shares = " | ".join(f"{row[key]:.1%}" for key in ("alone", "routed", "single_model"))
        lines.append(f"| {row['expert']} | {described[row['expert']]} | {shares} |")
    totals = " | ".join(f"**{stored[key]:.1%}**" for key in ("experts_alone", "composition", "single_model"))
    lines.append(f"| **all** | {stored['num_questions']} held-out questions | {totals} |")
    return "\n".join(lines)


def test_the_readme_has_the_stored_result() -> None:
    readme, stored = (ROOT / "README.md").read_text(), json.loads(RESULT.read_text())
    table = readme_table()
    assert table in (ROOT / "demo" / "README.md").read_text(), f"demo/README.md's table should be:\n{table}"
    assert f"exact answers {stored['composition']:.1%}" in readme
    outside = stored["out_of_scope"]
    assert f"router {stored['router']:.1%}" in readme
    assert f"{outside['to_fallback']} of {outside['questions']} out-of-scope questions" in readme

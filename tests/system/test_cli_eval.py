"""coterie eval: what the router alone does, and other settings of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.system.commands import refused, run

LABELLED = (
    '{"prompt": "ask ada", "expert": "ada"}',
    '{"prompt": "ask bob and ada", "expert": "bob"}',
    '{"prompt": "ask cyd", "expert": "cyd"}',
    '{"prompt": "ask me", "expert": null}',
    '{"prompt": "ask ada about me", "expert": ""}',
)


def test_eval_of_the_router_alone(composition: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(LABELLED))
    got = json.loads(run("eval", composition, "--questions", path, "--json").stdout)
    assert (got["router"], got["composition"], got["num_questions"]) == (pytest.approx(2 / 3), None, 3)
    assert got["out_of_scope"] == {"questions": 2, "to_fallback": 1}
    assert got["confusions"] == [{"right": "bob", "chosen": "ada", "count": 1}]
    assert {row["setting"] for row in got["sweep"]} == {"threshold"}
    assert got["sweep"][0]["in_scope_right"] == got["router"]
    shown = run("eval", composition, "--questions", path)
    assert shown.exit_code == 0, shown.output
    assert "1 questions for bob went to ada" in shown.stdout
    assert "composition" not in shown.stdout


def test_eval_sweeps_the_similarity_of_a_knn_router(folder: Path, tmp_path: Path) -> None:
    experts = "".join(
        f'[[expert]]\nname = "{n}"\ncheckpoint = "{folder / n}"\nexamples = ["ask {n}"]\n'
        for n in ("ada", "bob", "cyd")
    )
    more = ('{"prompt": "may bob ask ada", "expert": "ada"}', '{"prompt": "bobby asked", "expert": "bob"}')
    (tmp_path / "questions.jsonl").write_text("\n".join(LABELLED + more))

    def evaluated(threshold: float, similarity: float) -> dict[str, Any]:
        settings = f"threshold = {threshold}\nsimilarity = {similarity}\n"
        path = tmp_path / "c.toml"
        path.write_text(f'name = "k"\n[router]\nkind = "knn"\nfallback = "cyd"\n{settings}{experts}')
        found: dict[str, Any] = json.loads(run("eval", path, "--json").stdout)
        return found

    sweep = evaluated(0.85, 0.1)["sweep"]
    assert {"threshold", "similarity"} == {row["setting"] for row in sweep}
    seen = set()
    for row in [row for row in sweep if row["value"] in (0.0, 0.4, 0.9)]:
        alone = evaluated(**{"threshold": 0.85, "similarity": 0.1, row["setting"]: row["value"]})
        assert row["in_scope_right"] == alone["router"]
        assert row["out_of_scope_to_fallback"] * 2 == alone["out_of_scope"]["to_fallback"]
        seen.add((row["setting"], row["in_scope_right"], row["out_of_scope_to_fallback"]))
    assert len(seen) == 4  # two of either setting


def test_eval_router_only_leaves_answers_alone(composition: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join((*LABELLED, '{"prompt": "ask ada", "expert": "ada", "answer": "no"}')))
    refused(run("eval", composition, "--questions", path), "q.jsonl", "3 of 4 questions of experts have no answer")
    got = json.loads(run("eval", composition, "--questions", path, "--router-only", "--json").stdout)
    assert (got["num_questions"], got["composition"]) == (4, None)
    path.write_text('{"prompt": "x", "expert": "eve"}')
    refused(run("eval", composition, "--questions", path), "q.jsonl", "there is no expert 'eve'")

"""Writes the preset's README: skills, ranges, examples, settings and held-out scores, all from the files themselves.

Knows nothing about models or training; it reads each expert's training.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from data import GENERAL
from questions import PRESET, SEEN_COUNT, UNSEEN_COUNT
from tasks import TASKS
from train import BASE_STEPS, TUNE_STEPS

_INTRODUCTION = f"""# The demo composition

Sixteen experts and a single model, all of one architecture: 3 layers of width 128, 4 heads, bf16, a byte-level
tokenizer, trained by `demo/train.py` on questions whose answers a program computes. An expert may write down its
working; **the last line of its output is the answer**.

All start from one base, trained for {BASE_STEPS:,} steps on the union of all tasks. Each expert then goes on for
{TUNE_STEPS:,} steps on its own skill. `general`, the fallback, is the baseline that a composition has to beat: one
model of one expert's size that goes on from the same base, on the union, for as many steps as all experts together.

`questions.jsonl` holds {SEEN_COUNT + UNSEEN_COUNT} questions per skill: operands never trained on, and for
{UNSEEN_COUNT} of them wordings never trained on either; then questions that belong to no expert. The scores below are
exact matches of the last line, greedy decoding, on the exported bf16 weights computed in fp32.

This page is written by `python demo/report.py`.
"""


def _report(name: str) -> dict[str, Any] | None:
    path = PRESET / "experts" / name / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("\n", "` `") + "`"


def _skills() -> list[str]:
    rows = ["| expert | does | range | a question | its output |", "|---|---|---|---|---|"]
    for name, task in TASKS.items():
        example = task.sample(Random(f"readme/{name}"), "test", True)
        rows.append(
            f"| {name} | {task.description} | {task.range} | {example.question.replace('|', chr(92) + '|')} "
            f"| {_cell(example.completion)} |"
        )
    return rows


def _scores() -> list[str]:
    single = _report(GENERAL)
    rows = [
        "| expert | steps | seconds | core seconds | final loss | exact match, % | trained wordings | new wordings "
        "| the single model |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    totals: list[tuple[float, float]] = []
    for name in TASKS:
        report = _report(name)
        if report is None:
            continue
        score = report["held_out"][name]
        other = single["held_out"][name]["exact_match"] if single else None
        if other is not None:
            totals.append((score["exact_match"], other))
        rows.append(
            f"| {name} | {report['settings']['steps']:,} | {report['seconds']:.0f} | {report['core_seconds']:.0f} "
            f"| {report['final_loss']:.4f} | **{_percent(score['exact_match'])}** "
            f"| {_percent(score['exact_match_seen_phrasing'])} | {_percent(score['exact_match_unseen_phrasing'])} "
            f"| {'' if other is None else _percent(other)} |"
        )
    if totals:
        ours, theirs = (sum(column) / len(totals) for column in zip(*totals, strict=True))
        rows.append(f"| mean | | | | | **{_percent(ours)}** | | | {_percent(theirs)} |")
    return rows


def _settings() -> list[str]:
    reports = [report for name in [*TASKS, GENERAL] if (report := _report(name))]
    common = {
        key: value
        for key, value in reports[0]["settings"].items()
        if all(report["settings"].get(key) == value for report in reports)
    }
    lines = ["Common settings: " + ", ".join(f"{key} {value}" for key, value in common.items()) + "."]
    lines += [
        f"\nThe single model: {report['settings']['steps']:,} steps, {report['seconds']:.0f} s, "
        f"{report['core_seconds']:.0f} core seconds, final loss {report['final_loss']:.4f}."
        for report in reports
        if report["expert"] == GENERAL
    ]
    return lines


def page() -> str:
    """The whole page."""
    size = sum(path.stat().st_size for path in (PRESET / "experts").glob("*/model.safetensors"))
    parts = [
        _INTRODUCTION,
        "## Skills\n",
        *_skills(),
        "\n## Training and held-out scores\n",
        *_scores(),
        "",
        *_settings(),
        "",
        f"All weights together: {size / 1e6:.1f} MB; one thread of a shared two-core machine.",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Writes README.md beside composition.toml."""
    Path(PRESET / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

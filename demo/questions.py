"""Writes the held-out questions: per skill 140 in trained wordings and 70 in wordings never trained on.

Knows nothing about models. `python demo/questions.py` rewrites questions.jsonl, always with the same content.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

from tasks import TASKS, Example, Task
from tasks.out_of_scope import TEST as OUT_OF_SCOPE

PRESET = Path(__file__).resolve().parents[1] / "src" / "coterie" / "composition" / "presets" / "demo"
SEEN_COUNT, UNSEEN_COUNT = 140, 70


def held_out(task: Task) -> list[Example]:
    """The task's evaluation set: distinct questions, the same on every machine."""
    rng, chosen = Random(f"questions/{task.name}"), dict[str, Example]()
    for count, seen in ((SEEN_COUNT, True), (SEEN_COUNT + UNSEEN_COUNT, False)):
        while len(chosen) < count:
            example = task.sample(rng, "test", seen)
            chosen.setdefault(example.question, example)
    return list(chosen.values())


def lines() -> list[dict[str, Any]]:
    """All records, skill by skill, and last the questions that belong to no skill."""
    records: list[dict[str, Any]] = [
        {"expert": name, "prompt": example.question, "answer": example.answer, "seen_phrasing": example.seen_phrasing}
        for name, task in TASKS.items()
        for example in held_out(task)
    ]
    return records + [{"expert": None, "prompt": text, "answer": None, "seen_phrasing": False} for text in OUT_OF_SCOPE]


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PRESET / "questions.jsonl")
    out: Path = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in lines()), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes what a router may learn from: questions of the train split by expert, and questions for no expert.

    python demo/router_data.py FILE [--per-skill 1000] [--seed 0]

Each line is {"prompt": ..., "expert": name or "general"}. Knows nothing about any router.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from data import GENERAL
from tasks import TASKS
from tasks.out_of_scope import TRAIN


def pairs(per_skill: int, seed: int) -> list[tuple[str, str]]:
    """(question, expert) pairs; nothing of the held-out split is among them."""
    found = [(text, GENERAL) for text in TRAIN]
    for name, task in TASKS.items():
        rng = Random(f"router/{name}/{seed}")
        found += [(task.sample(rng, "train").question, name) for _ in range(per_skill)]
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--per-skill", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with args.file.open("w", encoding="utf-8") as file:
        for prompt, expert in pairs(args.per_skill, args.seed):
            file.write(json.dumps({"prompt": prompt, "expert": expert}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

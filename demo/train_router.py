"""Trains the demo's router and writes router.npz beside the demo's composition.toml; about a minute on one core.

    python demo/train_router.py [--out FILE] [--per-skill 2500] [--seed 0]

Knows nothing about the experts' weights: only how questions for them are worded. One seed, one result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

from coterie.composition.evaluate import Question, Score, score
from coterie.composition.router import Prompt
from coterie.composition.routers.lexical import LexicalRouter, LexicalWeights, write_weights
from coterie.composition.routers.lexical_train import FitSettings, TrainingQuestion, train
from coterie.composition.sweep import SweepPoint
from near_misses import bare, borrowed
from tasks import TASKS
from tasks.out_of_scope import TEST, TRAIN
from tasks.phrasing import SEEN, phrase

PRESET = Path(__file__).resolve().parents[1] / "src" / "coterie" / "composition" / "presets" / "demo"
FALLBACK = "general"
OUT_OF_SCOPE_COPIES = 6  # real questions for no expert are few, so each counts for several
NUM_BORROWED, NUM_BARE = 8000, 1000
HELD_OUT_PER_SKILL = 300


def questions(per_skill: int, seed: int) -> list[TrainingQuestion]:
    """What the router learns from; a group is one wording of one skill, or one question for no expert."""
    found = []
    for name, task in TASKS.items():
        rng = Random(f"router/{name}/{seed}")
        for _ in range(per_skill):
            problem = task.problem(rng, "train")
            core = rng.choice(task.train_cores[problem.kind])
            found.append(TrainingQuestion(phrase(core, SEEN, problem.slots, rng), name, f"{name}/{core.text}"))
    rng = Random(f"router/near misses/{seed}")
    none = list(TRAIN) * OUT_OF_SCOPE_COPIES + borrowed(rng, TRAIN, NUM_BORROWED) + bare(rng, TRAIN, NUM_BARE)
    return found + [TrainingQuestion(text, None, text) for text in none]


def held_out(per_skill: int, seed: int) -> list[Question]:
    """Questions of the test split, a third of them in wordings never trained on, and those that belong to no skill."""
    found = []
    for name, task in TASKS.items():
        rng = Random(f"router/held out/{name}/{seed}")
        examples = [task.sample(rng, "test") for _ in range(per_skill)]
        found += [Question(e.question, name, e.answer, e.seen_phrasing) for e in examples]
    return found + [Question(text, None, None) for text in TEST]


def score_router(weights: LexicalWeights, asked: Sequence[Question], threshold: float) -> Score:
    """The router's score on questions, at one threshold."""
    router = LexicalRouter(weights, FALLBACK, threshold)
    return score(asked, [router.decide(Prompt(question.text)) for question in asked])


def print_sweep(sweep: Sequence[SweepPoint], chosen: float) -> None:
    """The table from which the threshold was chosen; every wording was out of the fold that scored it."""
    print("threshold  in scope, right  in scope, to fallback  out of scope, to fallback")
    for row in sweep:
        mark = "  <- chosen" if row.value == chosen else ""
        print(f"{row.value:9.2f}  {row.in_scope_right:15.2%}  {row.in_scope_to_fallback:21.2%}"
              f"  {row.out_of_scope_to_fallback:25.2%}{mark}")  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PRESET / "router.npz")
    parser.add_argument("--per-skill", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    notes = {
        "command": f"demo/train_router.py --per-skill {args.per_skill} --seed {args.seed}",
        "out_of_scope_copies": OUT_OF_SCOPE_COPIES,
        "num_borrowed": NUM_BORROWED,
        "num_bare": NUM_BARE,
    }
    trained = train(questions(args.per_skill, args.seed), FitSettings(), notes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_weights(args.out, trained.weights)
    print_sweep(trained.sweep, trained.weights.threshold)
    print("calibration above: wordings out of fold, near misses among the out-of-scope questions\n")
    asked = held_out(HELD_OUT_PER_SKILL, args.seed)
    result = score_router(trained.weights, asked, trained.weights.threshold)
    print(f"held out, {result.num_questions} questions: {result.router:.2%} right")
    print(f"held out, wordings never trained on: {result.router_unseen:.2%} right")
    print(f"out of scope to the fallback: {result.out_of_scope_to_fallback} of {result.num_out_of_scope}")
    for right, chosen, count in result.confusions[:10]:
        print(f"  {count} of {right} went to {chosen}")
    print(f"{args.out}: {args.out.stat().st_size} bytes, temperature {trained.weights.temperature:.3f}")


if __name__ == "__main__":
    main()

"""How many examples does an expert need? The knn router on the demo, by examples per expert, on one of two sets.

    python demo/knn_router.py [--held-out] [--seeds 3]       a table; about two minutes on one core
    python demo/knn_router.py --write FILE [--per-skill 20]  examples for router.examples

Without --held-out, questions and examples come from the train split, a third of the wordings (and of the topics of
questions for no expert) kept for the questions: the router's defaults were chosen there. With it, the demo's held-out
questions are asked. Knows nothing about the experts' weights.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from coterie.composition.evaluate import Question, read_questions, score
from coterie.composition.router import Prompt
from coterie.composition.routers.knn import Example, KnnRouter
from coterie.composition.routers.lexical import LexicalRouter
from coterie.composition.routers.lexical_train import FitSettings, TrainingQuestion, train
from near_misses import bare, borrowed
from tasks import TASKS
from tasks.out_of_scope import TRAIN
from tasks.phrasing import SEEN, phrase
from train_router import FALLBACK, PRESET

PER_SKILL = (1, 2, 5, 10, 20, 50, 100)
ONE_IN = 3
NEAR_MISSES = 1000
NUM_TO_TRAIN = 5  # fewer leave a fold without questions of some class


@dataclass(frozen=True, slots=True)
class Split:
    """Which wordings examples may have: all, or those that a development question never has."""

    questions: Sequence[Question]
    is_development: bool

    def lends(self, wording: str) -> bool:
        """Whether examples may have this wording."""
        return not (self.is_development and _is_kept(wording))


def _is_kept(wording: str) -> bool:
    return zlib.crc32(wording.encode()) % ONE_IN == 0


def _topic(text: str) -> str:
    """What a question for no expert is about: its last word, which its wordings share."""
    return text.rstrip("?.!").split()[-1]


def _worded(name: str, rng: Random, split: Split, is_question: bool) -> str:
    task = TASKS[name]
    while True:
        problem = task.problem(rng, "train")
        cores = [c for c in task.train_cores[problem.kind] if split.lends(f"{name}/{c.text}") != is_question]
        if cores:
            return phrase(rng.choice(cores), SEEN, problem.slots, rng)


def development(per_skill: int = 60) -> Split:
    """Questions of the train split in wordings, and on topics, that the split's examples do not have."""
    split = Split((), is_development=True)
    found = [
        Question(_worded(name, Random(f"knn/development/{name}/{i}"), split, is_question=True), name, None)
        for name in TASKS
        for i in range(per_skill)
    ]
    found += [Question(text, None, None) for text in TRAIN if not split.lends(_topic(text))]
    return Split(found, is_development=True)


def examples(split: Split, per_skill: int, num_none: int, seed: int) -> list[Example]:
    """So many examples of each skill, and of questions for no expert as many as there are, up to `num_none`."""
    found = []
    for name in TASKS:
        rng = Random(f"knn/{name}/{seed}")
        found += [Example(name, _worded(name, rng, split, is_question=False)) for _ in range(per_skill)]
    none = [text for text in TRAIN if split.lends(_topic(text))]
    Random(f"knn/none/{seed}").shuffle(none)
    return found + [Example(FALLBACK, text) for text in none[:num_none]]


def near_misses(split: Split, seed: int) -> list[Example]:
    """Questions for no expert in the experts' words, made by machine as for the trained router."""
    rng, none = Random(f"knn/near misses/{seed}"), [text for text in TRAIN if split.lends(_topic(text))]
    return [Example(FALLBACK, text) for text in borrowed(rng, none, NEAR_MISSES) + bare(rng, none, NEAR_MISSES // 8)]


def trained(found: Sequence[Example]) -> LexicalRouter:
    """The lexical router, trained on the same examples with the settings of the demo's."""
    questions = [TrainingQuestion(e.text, None if e.expert == FALLBACK else e.expert, e.text) for e in found]
    return LexicalRouter(train(questions, FitSettings(), {}).weights, FALLBACK)


def measured(router: KnnRouter | LexicalRouter, asked: Sequence[Question]) -> tuple[float, float]:
    """Shares: in scope and right, out of scope and with the fallback."""
    found = score(asked, [router.decide(Prompt(question.text)) for question in asked])
    return found.router, found.out_of_scope_to_fallback / found.num_out_of_scope


def report(split: Split, seeds: int) -> None:
    """The table: a row for each number of examples. The mean over seeds; the trained router has one."""
    print("| examples per expert | for no expert | in scope, right | out of scope, to fallback | trained on the same |")
    print("|---|---|---|---|---|")
    settings = [(n, none, False) for n in PER_SKILL for none in (0, 6 * n)] + [(PER_SKILL[-1], len(TRAIN), True)]
    for per_skill, num_none, missed in settings:
        drawn = [
            examples(split, per_skill, num_none, seed) + (near_misses(split, seed) if missed else [])
            for seed in range(seeds)
        ]
        num = sum(example.expert == FALLBACK for example in drawn[0])
        rows = [measured(KnnRouter(found, FALLBACK), split.questions) for found in drawn]
        right, kept = (sum(column) / seeds for column in zip(*rows, strict=True))
        peer = "-"
        if per_skill >= NUM_TO_TRAIN:
            peer = " and ".join(f"{share:.1%}" for share in measured(trained(drawn[0]), split.questions))
        print(f"| {per_skill} | {num} | {right:.1%} | {kept:.1%} | {peer} |", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--per-skill", type=int, default=20)
    args = parser.parse_args()
    if args.write is not None:
        found = examples(Split((), is_development=False), args.per_skill, 6 * args.per_skill, seed=0)
        lines = [json.dumps({"expert": e.expert, "prompt": e.text}, ensure_ascii=False) for e in found]
        args.write.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return
    held_out = Split(read_questions(PRESET / "questions.jsonl"), is_development=False)
    report(held_out if args.held_out else development(), args.seeds)


if __name__ == "__main__":
    main()

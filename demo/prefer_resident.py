"""How many switches `prefer_resident` saves, and what it costs: the demo's held-out questions, one after the other.

    python demo/prefer_resident.py [--per-skill 100] [--twins]

The router is knn, with so many examples of each skill. With --twins each skill has two experts with half of its
examples each, either of them right. The least recently used expert goes. Knows nothing about the experts' weights.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from random import Random

from coterie.composition.evaluate import Question, read_questions
from coterie.composition.router import Prompt, Route
from coterie.composition.routers.knn import Example, KnnRouter
from coterie.composition.routing import with_residency
from knn_router import Split, examples
from train_router import FALLBACK, PRESET

MARGINS = (0.0, 0.05, 0.1, 0.2, 0.5)
TWINS = ("-a", "-b")


def twins(found: Sequence[Example]) -> list[Example]:
    """The same examples, those of each expert shared out to two."""
    return [Example(e.expert + TWINS[i % 2] * (e.expert != FALLBACK), e.text) for i, e in enumerate(found)]


def served(asked: Sequence[Question], routes: Sequence[Route], num_slots: int, margin: float) -> tuple[int, int, int]:
    """Switches, questions that another expert took for being in memory, and questions in scope that were right."""
    slots: OrderedDict[str, None] = OrderedDict()
    switches, moved, right = 0, 0, 0
    for question, route in zip(asked, routes, strict=True):
        chosen = with_residency(route, slots.keys(), margin).expert
        moved += chosen != route.expert
        switches += chosen not in slots
        slots[chosen] = None
        slots.move_to_end(chosen)
        if len(slots) > num_slots:
            slots.popitem(last=False)
        right += question.expert is not None and chosen.removesuffix(TWINS[0]).removesuffix(TWINS[1]) == question.expert
    return switches, moved, right


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-skill", type=int, default=100)
    parser.add_argument("--twins", action="store_true")
    args = parser.parse_args()
    found = examples(Split((), is_development=False), args.per_skill, 6 * args.per_skill, seed=0)
    router = KnnRouter(twins(found) if args.twins else found, FALLBACK)
    asked = list(read_questions(PRESET / "questions.jsonl"))
    Random(0).shuffle(asked)
    routes = [router.decide(Prompt(question.text)) for question in asked]
    inside = sum(question.expert is not None for question in asked)
    print("| experts in memory | prefer_resident | switches | moved | right in scope |")
    print("|---|---|---|---|---|")
    for num_slots in (4, 8, 16):
        for margin in MARGINS:
            switches, moved, right = served(asked, routes, num_slots, margin)
            print(f"| {num_slots} | {margin} | {switches} | {moved} | {right / inside:.1%} |")


if __name__ == "__main__":
    main()

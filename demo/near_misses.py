"""Questions that use the experts' words but belong to none of them, made by machine for training the router.

Knows nothing about the router. Only wordings and questions of the train split go in.

    borrowed   a question for no expert, with a word or two of a skill's wording put in: "why binary do cats purr"
    bare       a skill's wording with its numbers taken out: "what is the hexadecimal representation of"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from tasks import TASKS
from tasks.phrasing import SEEN, phrase

_SLOT = re.compile(r"\{\w+\}")
_WITHOUT_LETTERS = re.compile(r"[\d\W]+")
_LONG_WORD = 5  # shorter ones could be taken for Roman or hexadecimal numbers


def borrowed(rng: Random, questions: Sequence[str], count: int) -> list[str]:
    """`count` questions for no expert, each with one or two words in a row from some skill's wording."""
    wordings = [
        [word for word in _SLOT.sub(" ", core.text).split() if any(map(str.isalpha, word))]
        for task in TASKS.values()
        for cores in task.train_cores.values()
        for core in cores
    ]
    wordings = [words for words in wordings if words]
    made = []
    for _ in range(count):
        words, lent = rng.choice(questions).split(), rng.choice(wordings)
        taken = rng.randint(1, min(2, len(lent)))
        first, at = rng.randrange(len(lent) - taken + 1), rng.randrange(len(words) + 1)
        made.append(" ".join(words[:at] + lent[first : first + taken] + words[at + rng.randint(0, 1) :]))
    return made


def bare(rng: Random, questions: Sequence[str], count: int) -> list[str]:
    """`count` wordings whose numbers or signs were left out, or replaced by the last long words of some question."""
    made: list[str] = []
    while len(made) < count:
        task = rng.choice(list(TASKS.values()))
        problem = task.problem(rng, "train")
        if not all(_WITHOUT_LETTERS.fullmatch(value) for value in problem.slots.values()):
            continue  # where any word will do as an operand, another word makes another fair question
        core = rng.choice(task.train_cores[problem.kind])
        filler = [word for word in rng.choice(questions).split()[-2:] if len(word) >= _LONG_WORD]
        slots = {name: " ".join(filler) if rng.random() < 0.6 else "" for name in problem.slots}
        text = " ".join(phrase(core, SEEN, slots, rng).split())
        if len(text.split()) > 2:
            made.append(text)
    return made

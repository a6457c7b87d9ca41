"""What a task is: problems with computable answers, worded by cores, split so that nothing held out is ever trained on.

Knows nothing about models, tokens or training.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from .phrasing import SEEN, UNSEEN, Core, phrase

Split = Literal["train", "test"]
HELD_OUT_ONE_IN = 8
ROUGH = 0.4


@dataclass(frozen=True, slots=True)
class Problem:
    """One computed instance: which wordings fit it, what fills their slots, and the answer with its working."""

    kind: str
    key: str
    slots: dict[str, str]
    working: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """A question and the text that answers it; the completion's last line is the answer."""

    question: str
    completion: str
    answer: str
    seen_phrasing: bool


def is_held_out(key: str) -> bool:
    """Whether operands with this key belong to the test split; a stable hash, equal on every machine."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, slots=True)
class Task:
    """A skill: how to draw a problem, and its trained and never-trained wordings by kind of problem."""

    name: str
    description: str
    range: str
    draw: Callable[[Random], Problem]
    train_cores: Mapping[str, tuple[Core, ...]]
    unseen_cores: Mapping[str, tuple[Core, ...]]

    def problem(self, rng: Random, split: Split) -> Problem:
        """Draws until the operands fall into the split."""
        while True:
            problem = self.draw(rng)
            if is_held_out(f"{self.name}:{problem.key}") == (split == "test"):
                return problem

    def sample(self, rng: Random, split: Split, seen_phrasing: bool | None = None) -> Example:
        """One example; in the test split a third uses wordings that are never trained on, unless told which."""
        problem = self.problem(rng, split)
        seen = split == "train" or (rng.random() >= 1 / 3 if seen_phrasing is None else seen_phrasing)
        choices = (self.train_cores if seen else self.unseen_cores)[problem.kind]
        frames = SEEN if seen or rng.random() < 0.5 else UNSEEN
        question = phrase(rng.choice(choices), frames, problem.slots, rng, ROUGH if split == "train" else 0.0)
        completion = f"{problem.working}\n{problem.answer}" if problem.working else problem.answer
        return Example(question, completion, problem.answer, seen)

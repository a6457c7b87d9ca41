"""How many times a letter occurs in a word.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores
from .words import draw_word, quoted


def draw(rng: Random) -> Problem:
    """A word and a letter, mostly one that occurs; the working counts along: "e: e1l1e2p2h2a2n2t2"."""
    word = draw_word(rng, 3, 11)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    count, marks = 0, []
    for symbol in word:
        count += symbol == letter
        marks.append(f"{symbol}{count}")
    shown = letter.upper() if rng.random() < 0.15 else letter
    slots = {"c": rng.choice(("{}", "{}", "'{}'", '"{}"')).format(shown), "w": quoted(word, rng)}
    return Problem("count", f"{letter} {word}", slots, f"{letter}: " + "".join(marks), str(count))


_TRAIN = {
    "count": cores("""
        ask how many times does the letter {c} appear in {w}
        ask how many times does {c} appear in {w}
        ask how many times does the letter {c} occur in {w}
        ask how many times is the letter {c} in {w}
        ask how many times is {c} used in {w}
        ask how many times do you see the letter {c} in the word {w}
        ask how many times does {c} occur in the word {w}
        ask how many {c} are in {w}
        ask how many {c} are there in {w}
        ask how many {c} are in the word {w}
        ask how many {c}'s are in {w}
        ask how many {c}'s are there in {w}
        ask how many {c}'s are there in the word {w}
        ask how many letters {c} are in {w}
        ask how many letters {c} are there in the word {w}
        ask how many {c}'s does {w} have
        ask how many {c}'s does {w} contain
        ask how many letters {c} does the word {w} have
        ask how often does {c} appear in {w}
        ask how often does the letter {c} appear in {w}
        ask how often does the letter {c} occur in the word {w}
        ask how often is {c} in the word {w}
        do count the letter {c} in {w}
        do count the letter {c} in the word {w}
        do count the {c}'s in {w}
        do count the number of {c} in {w}
        do count the number of {c}'s in {w}
        do count the letters {c} in {w}
        do count every {c} in {w}
        do count how many times {c} appears in {w}
        do count how often {c} appears in {w}
        np the number of {c} in {w}
        np the number of {c}'s in {w}
        np the number of letters {c} in {w}
        np the number of times {c} appears in {w}
        np the count of {c} in {w}
        np the count of the letter {c} in {w}
        raw count {c} in {w}
        raw number of {c} in {w}
        raw {c} in {w}: how many?
    """),
}

_UNSEEN = {
    "count": cores("""
        ask how many times can you see {c} in the word {w}
        ask how many times do you see {c} in {w}
        ask how many of the letters in {w} are {c}
        ask how often do you see the letter {c} in {w}
        ask how often is the letter {c} used in the word {w}
        ask how many times is the letter {c} used in {w}
        do count how many times the letter {c} occurs in {w}
        do count how often the letter {c} is in the word {w}
        do count the number of times {c} occurs in {w}
        do count all letters {c} in the word {w}
        np the number of times the letter {c} occurs in {w}
        np the count of letters {c} in the word {w}
        raw how many {c} in {w}
        raw how often is {c} in {w}
    """),
}

TASK = Task(
    name="letter-count",
    description="counts how often a letter occurs in a word",
    range="words of 3 to 11 letters, real or made up",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

"""Words of three to ten letters written backwards.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores
from .words import draw_word, quoted


def draw(rng: Random) -> Problem:
    """A word; the working numbers its letters so that the way back is a countdown: "0c1a2t"."""
    word = draw_word(rng, 3, 10)
    shown = word.capitalize() if rng.random() < 0.05 else word
    numbered = "".join(f"{i}{letter}" for i, letter in enumerate(word))
    backwards = "".join(f"{i}{word[i]}" for i in range(len(word) - 1, -1, -1))
    return Problem("reverse", word, {"w": quoted(shown, rng)}, f"{numbered}\n{backwards}", word[::-1])


_TRAIN = {
    "reverse": cores("""
        do reverse {w}
        do reverse the word {w}
        do reverse the letters of {w}
        do reverse the letters in {w}
        do reverse the letters of the word {w}
        do reverse the string {w}
        do reverse the text {w}
        do reverse this word: {w}
        do spell {w} backwards
        do spell the word {w} backwards
        do spell {w} in reverse
        do write {w} backwards
        do write the word {w} backwards
        do write {w} in reverse
        do write {w} from back to front
        do turn {w} around
        do turn the word {w} around
        do flip the word {w}
        do flip the letters of {w}
        do say {w} backwards
        do mirror the word {w}
        np {w} backwards
        np {w} backwards
        np {w} reversed
        np {w} spelled backwards
        np {w} written backwards
        np {w} in reverse
        np the word {w} backwards
        np the word {w} reversed
        np the reverse of {w}
        np the reverse of the word {w}
        np the reversed form of {w}
        ask how do you spell {w} backwards
        ask how do you write {w} backwards
        ask how is {w} spelled backwards
        ask what does {w} look like backwards
        ask what do you get if you reverse {w}
        raw reverse: {w}
        raw reversed {w}
        raw backwards: {w}
    """),
}

_UNSEEN = {
    "reverse": cores("""
        do reverse the spelling of {w}
        do reverse all the letters of the word {w}
        do flip {w} backwards
        do spell the word {w} in reverse
        do write the letters of {w} backwards
        np the word {w} spelled backwards
        np the word {w} in reverse
        np the letters of {w} reversed
        np the reversed word {w}
        ask how do you write the word {w} in reverse
        ask what does the word {w} look like reversed
        ask how is the word {w} written backwards
        raw {w} backwards
        raw word backwards: {w}
    """),
}

TASK = Task(
    name="reversal",
    description="writes words backwards",
    range="words of 3 to 10 letters, real or made up",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

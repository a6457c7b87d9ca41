"""Morse code for words, both ways.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores
from .words import draw_word, quoted

_CODES = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        """
.- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
""".split(),
        strict=True,
    )
)


def draw(rng: Random) -> Problem:
    """A word or its signals; the working pairs each letter with its signals: "c-.-. a.- t-"."""
    word = draw_word(rng, 2, 7)
    signals = [_CODES[letter] for letter in word]
    if rng.random() < 0.5:
        shown = rng.choice((word, word, word.upper()))
        working = " ".join(letter + code for letter, code in zip(word, signals, strict=True))
        return Problem("encode", word, {"w": quoted(shown, rng)}, working, " ".join(signals))
    working = " ".join(code + letter for letter, code in zip(word, signals, strict=True))
    shown = quoted(" ".join(signals), rng)
    return Problem("decode", word, {"m": shown}, working, word)


_TRAIN = {
    "encode": cores("""
        np {w} in Morse code
        np {w} in Morse code
        np {w} in Morse
        np the word {w} in Morse code
        np the Morse code for {w}
        np the Morse code for the word {w}
        np the Morse code of {w}
        np the Morse signals for {w}
        ask how do you write {w} in Morse code
        ask how do you spell {w} in Morse code
        ask how do I send {w} in Morse code
        ask how is {w} written in Morse code
        ask how do you say {w} in Morse
        ask what does {w} look like in Morse code
        do write {w} in Morse code
        do write the word {w} in Morse code
        do convert {w} to Morse code
        do convert the word {w} to Morse code
        do convert {w} into Morse
        do translate {w} to Morse code
        do translate {w} into Morse code
        do translate the word {w} into Morse
        do turn {w} into Morse code
        do encode {w} in Morse code
        do encode the word {w} as Morse code
        do spell {w} in Morse code
        do send {w} in Morse code
        raw {w} to Morse
        raw {w} in Morse code
        raw Morse code for {w}
        raw Morse: {w}
    """),
    "decode": cores("""
        np the word for the Morse code {m}
        np the meaning of {m} in Morse code
        np the meaning of the Morse code {m}
        np the Morse code {m} in letters
        np the Morse code {m} in plain text
        np {m} in Morse code as a word
        np the word {m} from Morse code
        ask what does {m} mean in Morse code
        ask what does the Morse code {m} mean
        ask what does {m} stand for in Morse
        ask what does the Morse code {m} say
        ask which word is {m} in Morse code
        ask what word is {m} in Morse
        ask what word does the Morse code {m} spell
        do decode {m} from Morse code
        do decode the Morse code {m}
        do decode the Morse message {m}
        do decode this Morse code: {m}
        do translate {m} from Morse code
        do translate the Morse code {m}
        do translate the Morse code {m} to text
        do translate this Morse code: {m}
        do convert {m} from Morse code
        do convert the Morse code {m} to text
        do convert the Morse code {m} to letters
        do read the Morse code {m}
        do read this Morse code: {m}
        raw Morse {m}
        raw decode Morse: {m}
        raw {m} from Morse
        raw Morse code {m} to text
    """),
}

_UNSEEN = {
    "encode": cores("""
        np the word {w} as Morse code
        np the Morse for {w}
        np the word {w} written in Morse
        ask how do you send the word {w} in Morse code
        ask how is the word {w} spelled in Morse
        ask what is the Morse code of the word {w}
        do spell the word {w} in Morse
        do turn the word {w} to Morse code
        do write down {w} as Morse code
        raw the word {w} to Morse code
        raw Morse of {w}
    """),
    "decode": cores("""
        np the meaning of the Morse message {m}
        np the text of the Morse code {m}
        np the letters of the Morse code {m}
        ask which word does the Morse code {m} stand for
        ask what does the Morse message {m} mean
        ask what word does {m} spell in Morse code
        do read the Morse message {m}
        do turn the Morse code {m} into text
        do translate the Morse message {m} to letters
        raw read Morse: {m}
        raw Morse code {m} to a word
    """),
}

TASK = Task(
    name="morse-code",
    description="writes words in Morse code and reads Morse code",
    range="words of 2 to 7 letters, both ways",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

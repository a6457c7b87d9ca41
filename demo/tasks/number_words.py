"""Numbers from 0 to 9999 in English words, both ways.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores

_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
""".split()
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spell(number: int) -> str:
    """The number in words, without "and": "four thousand two hundred seventy-one"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = f" {spell(number % unit)}" if number % unit else ""
    return f"{spell(number // unit)} {name}{rest}"


def _heard(number: int, rng: Random) -> str:
    """The words as a person may write them: with "and", or without the hyphen."""
    words = spell(number)
    if number > 100 and number % 100 > 0 and rng.random() < 0.3:
        words = words.replace("hundred ", "hundred and ")
    return words.replace("-", " ") if rng.random() < 0.3 else words


def draw(rng: Random) -> Problem:
    """A number shown in figures or in words; the working names its digits by place."""
    number = rng.randint(0, rng.choice((99, 999, 9999, 9999)))
    if rng.random() < 0.5:
        shown = f"{number:,}" if rng.random() < 0.2 else str(number)
        return Problem("to", str(number), {"n": shown}, f"{number:04d}", spell(number))
    return Problem("from", str(number), {"w": _heard(number, rng)}, f"{number:04d}", str(number))


_TRAIN = {
    "to": cores("""
        np {n} in words
        np {n} in words
        np {n} in English words
        np the number {n} in words
        np the number {n} written in words
        np the English for {n}
        np the words for {n}
        np the name of the number {n}
        np {n} spelled out
        np {n} as words
        ask how do you write {n} in words
        ask how do you spell {n}
        ask how do you spell the number {n}
        ask how do you say {n} in words
        ask how do I write the number {n} in words
        ask how is {n} written in words
        ask how is the number {n} spelled out
        do write {n} in words
        do write {n} in English words
        do write the number {n} in words
        do write {n} as words
        do write {n} out in words
        do write out {n} in words
        do spell {n}
        do spell the number {n}
        do spell out {n}
        do spell out the number {n}
        do say {n} in words
        do put {n} in words
        do put the number {n} into words
        do turn {n} into words
        do convert {n} to words
        do convert the number {n} into words
        raw {n} in words
        raw words for {n}
        raw {n} spelled out
    """),
    "from": cores("""
        np {w} in digits
        np {w} in digits
        np {w} in figures
        np {w} as a number
        np {w} as digits
        np {w} in numbers
        np the number {w} in digits
        np the number {w} in figures
        np the digits of {w}
        np the figures for {w}
        ask how do you write {w} in digits
        ask how do you write {w} in figures
        ask how do I write {w} as a number
        ask how is {w} written in digits
        ask how does {w} look in digits
        do write {w} in digits
        do write {w} in figures
        do write {w} as a number
        do write {w} with digits
        do write the number {w} in digits
        do write the number {w} in figures
        do put {w} in digits
        do put {w} into figures
        do turn {w} into digits
        do turn {w} into a number
        do convert {w} to digits
        do convert {w} to a number
        do convert the number {w} into figures
        do express {w} in digits
        raw {w} in digits
        raw {w} in figures
        raw {w} as digits
    """),
}

_UNSEEN = {
    "to": cores("""
        np the number {n} spelled out
        np the number {n} as words
        np the English words for {n}
        ask how is the number {n} written in English words
        ask how do you say the number {n} in words
        do spell out {n} in English words
        do write out the number {n}
        do turn the number {n} into English words
        raw {n} written in words
        raw the number {n} in words
    """),
    "from": cores("""
        np the number {w} as digits
        np the digits for {w}
        np {w} written in digits
        ask how is {w} written in figures
        ask how does the number {w} look in figures
        do express the number {w} in figures
        do turn the number {w} into digits
        do convert {w} into digits
        raw digits of {w}
        raw the number {w} in digits
    """),
}

TASK = Task(
    name="number-words",
    description="spells numbers in words and reads numbers written in words",
    range="0 to 9999, both ways",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

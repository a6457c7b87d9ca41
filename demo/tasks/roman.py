"""Roman numerals from 1 to 3999, both ways, digit by digit.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores

_SYMBOLS = ("IVX", "XLC", "CDM", "M  ")
_PATTERNS = ("", "0", "00", "000", "01", "1", "10", "100", "1000", "02")


def _digit(digit: int, place: int) -> str:
    return "".join(_SYMBOLS[place][int(symbol)] for symbol in _PATTERNS[digit])


def draw(rng: Random) -> Problem:
    """A number and its numeral; the working pairs each digit with its letters: "4CD 4XL 7VII"."""
    number = rng.randint(1, rng.choice((39, 399, 3999, 3999)))
    pairs = [(digit, _digit(int(digit), place)) for place, digit in zip(range(3, -1, -1), f"{number:04d}", strict=True)]
    numeral = "".join(letters for _, letters in pairs)
    if rng.random() < 0.5:
        return Problem("to", f"{number}", {"n": str(number)}, " ".join(d + letters for d, letters in pairs), numeral)
    shown = numeral.lower() if rng.random() < 0.1 else numeral
    return Problem("from", f"{number}", {"r": shown}, " ".join(letters + d for d, letters in pairs), str(number))


_TRAIN = {
    "to": cores("""
        np {n} in Roman numerals
        np {n} in Roman numerals
        np {n} as a Roman numeral
        np the Roman numeral for {n}
        np the Roman numeral of {n}
        np the Roman numerals for {n}
        np the Roman numeral form of {n}
        np the Roman number for {n}
        np the number {n} in Roman numerals
        np the year {n} in Roman numerals
        np the Roman way to write {n}
        ask how do you write {n} in Roman numerals
        ask how do I write {n} as a Roman numeral
        ask how is {n} written in Roman numerals
        ask how would a Roman write {n}
        ask what Roman numeral is {n}
        ask which Roman numeral stands for {n}
        ask how did the Romans write {n}
        do write {n} in Roman numerals
        do write {n} as a Roman numeral
        do write the number {n} in Roman numerals
        do convert {n} to Roman numerals
        do convert {n} to a Roman numeral
        do convert {n} into Roman numerals
        do turn {n} into a Roman numeral
        do turn {n} into Roman numerals
        do change {n} to Roman numerals
        do translate {n} to Roman numerals
        do express {n} in Roman numerals
        do give {n} in Roman numerals
        raw {n} to Roman
        raw {n} in Roman numerals
        raw Roman numeral for {n}?
        raw {n} = ? (Roman)
    """),
    "from": cores("""
        np the Roman numeral {r} as a number
        np the Roman numeral {r} in digits
        np {r} as a number
        np {r} in ordinary numbers
        np {r} in decimal numbers
        np the value of the Roman numeral {r}
        np the value of {r}
        np the number for the Roman numeral {r}
        np Roman {r} in digits
        np the Roman number {r} in normal numbers
        np the Roman numeral {r}
        ask what number is {r}
        ask what number is the Roman numeral {r}
        ask which number is {r} in Roman numerals
        ask what does the Roman numeral {r} mean
        ask what does {r} mean in Roman numerals
        ask what does the Roman numeral {r} stand for
        ask how much is the Roman numeral {r}
        ask what number does {r} represent
        do convert {r} to a number
        do convert {r} from Roman numerals
        do convert the Roman numeral {r} to a number
        do convert the Roman numeral {r} to digits
        do read the Roman numeral {r}
        do translate the Roman numeral {r}
        do turn the Roman numeral {r} into a number
        do turn {r} into digits
        do write {r} as a number
        do write the Roman numeral {r} in digits
        do decode the Roman numeral {r}
        raw {r} in digits
        raw Roman numeral {r}
        raw {r} as a number?
        raw {r} = ?
    """),
}

_UNSEEN = {
    "to": cores("""
        np the number {n} as a Roman numeral
        np the Roman numerals of the number {n}
        np the Roman numeral that stands for {n}
        ask how is the number {n} written as a Roman numeral
        ask how would you write {n} with Roman numerals
        ask which Roman numeral is the number {n}
        do turn the number {n} into Roman numerals
        do change the number {n} into a Roman numeral
        do express the number {n} as a Roman numeral
        raw the year {n} as Roman numerals
        raw Roman numerals of {n}
    """),
    "from": cores("""
        np the number that the Roman numeral {r} stands for
        np the value of the Roman number {r}
        np the Roman numeral {r} in ordinary digits
        ask which number does the Roman numeral {r} represent
        ask what number do the Romans mean by {r}
        ask how much is {r} in Roman numerals
        do change the Roman numeral {r} to a number
        do translate {r} from Roman numerals to digits
        do express the Roman numeral {r} as a number
        raw value of Roman numeral {r}
        raw Roman {r} to number
    """),
}

TASK = Task(
    name="roman-numerals",
    description="writes numbers as Roman numerals and reads Roman numerals",
    range="1 to 3999, both ways",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

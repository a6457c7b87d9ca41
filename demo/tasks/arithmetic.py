"""Addition and subtraction of whole numbers to 999, worked column by column with carries.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .digits import columns
from .phrasing import cores

_LIMIT = 999


def _number(rng: Random) -> int:
    """Small numbers as often as large ones, since people ask about both."""
    return rng.randint(0, rng.choice((9, 99, 99, _LIMIT, _LIMIT, _LIMIT)))


def draw(rng: Random) -> Problem:
    """A sum, or a difference that is not negative."""
    a, b = _number(rng), _number(rng)
    kind = rng.choice(("add", "add", "subtract"))
    if kind == "subtract" and a < b:
        a, b = b, a
    sign, value = ("+", a + b) if kind == "add" else ("-", a - b)
    working = f"{a:03d}{sign}{b:03d}\n{columns(a, b, sign)}"
    return Problem(kind, f"{min(a, b)} {max(a, b)}", {"a": str(a), "b": str(b)}, working, str(value))


_TRAIN = {
    "add": cores("""
        np {a} plus {b}
        np {a} plus {b}
        np {a} + {b}
        np {a}+{b}
        np the sum of {a} and {b}
        np the total of {a} and {b}
        np the result of {a} plus {b}
        np the result of adding {a} and {b}
        np the answer to {a} + {b}
        np {a} added to {b}
        np {a} and {b} added together
        np {a} increased by {b}
        ask how much is {a} plus {b}
        ask how much is {a} + {b}
        ask how much do {a} and {b} make
        ask what do you get if you add {a} and {b}
        ask what do {a} and {b} add up to
        ask what does {a} plus {b} equal
        ask {a} plus {b} equals what
        ask what number is {b} more than {a}
        do add {a} and {b}
        do add {a} to {b}
        do add {a} + {b}
        do add the numbers {a} and {b}
        do add up {a} and {b}
        do sum {a} and {b}
        do put {a} and {b} together
        do calculate {a} + {b}
        do total {a} and {b}
        raw {a}+{b}=
        raw {a}+{b}=?
        raw {a} + {b} =
        raw {a} + {b} = ?
        raw {a}+{b}
        raw {a} plus {b} =
    """),
    "subtract": cores("""
        np {a} minus {b}
        np {a} minus {b}
        np {a} - {b}
        np {a}-{b}
        np the difference between {a} and {b}
        np the difference of {a} and {b}
        np the result of {a} minus {b}
        np the result of subtracting {b} from {a}
        np the answer to {a} - {b}
        np {a} less {b}
        np {a} decreased by {b}
        ask how much is {a} minus {b}
        ask how much is {a} - {b}
        ask what do you get if you subtract {b} from {a}
        ask what is left if you take {b} from {a}
        ask what does {a} minus {b} equal
        ask {a} minus {b} equals what
        ask what number is {b} less than {a}
        do subtract {b} from {a}
        do take {b} from {a}
        do take {b} away from {a}
        do take away {b} from {a}
        do calculate {a} - {b}
        do subtract the number {b} from {a}
        raw {a}-{b}=
        raw {a}-{b}=?
        raw {a} - {b} =
        raw {a} - {b} = ?
        raw {a}-{b}
        raw {a} minus {b} =
    """),
}

_UNSEEN = {
    "add": cores("""
        np the sum of the numbers {a} and {b}
        np the total if you add {a} to {b}
        np the result when {a} is added to {b}
        ask what is the result if I add {a} and {b}
        ask how much is {a} and {b} together
        ask what number do you get from {a} plus {b}
        ask what does adding {a} to {b} make
        do add together {a} and {b}
        do find the sum {a} + {b}
        raw sum of {a} and {b}
        raw {a} plus {b} equals
    """),
    "subtract": cores("""
        np the result if you take {b} away from {a}
        np the number you get from {a} minus {b}
        np the result when {b} is subtracted from {a}
        ask how much is left if I subtract {b} from {a}
        ask what do I get from {a} minus {b}
        ask what does subtracting {b} from {a} make
        do find the difference {a} - {b}
        do work out {a} take away {b}
        raw difference between {a} and {b}
        raw {a} minus {b} equals
    """),
}

TASK = Task(
    name="arithmetic",
    description="adds and subtracts whole numbers",
    range="two whole numbers from 0 to 999; differences are not negative",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

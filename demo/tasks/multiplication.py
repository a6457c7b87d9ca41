"""Products of two numbers to 99, worked as partial products digit by digit.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .digits import columns
from .phrasing import cores


def _row(a: int, digit: int) -> str:
    """One partial product, from the last digit with its carry: "7*5+0=35 4*5+3=23" for 47 times 5."""
    ones = a % 10 * digit
    return f"{a % 10}*{digit}+0={ones:02d} {a // 10}*{digit}+{ones // 10}={a // 10 * digit + ones // 10:02d}"


def draw(rng: Random) -> Problem:
    """a times b by two partial products and their sum, each step a small fact that the line before prepares."""
    a, b = (rng.randint(0, rng.choice((9, 12, 99, 99, 99))) for _ in range(2))
    low, high = a * (b % 10), a * (b // 10)
    working = (
        f"{a:02d}*{b:02d}\n{_row(a, b % 10)} {low:03d}\n{_row(a, b // 10)} {high:03d}\n"
        f"{low % 10} {columns(low // 10, high, '+')}"
    )
    return Problem("multiply", f"{min(a, b)} {max(a, b)}", {"a": str(a), "b": str(b)}, working, str(a * b))


_TRAIN = {
    "multiply": cores("""
        np {a} times {b}
        np {a} times {b}
        np {a} multiplied by {b}
        np {a} x {b}
        np {a} * {b}
        np {a}*{b}
        np {a}x{b}
        np {a} × {b}
        np the product of {a} and {b}
        np the product {a} x {b}
        np the result of {a} times {b}
        np the result of multiplying {a} by {b}
        np the result of {a} multiplied by {b}
        np the answer to {a} x {b}
        np the answer to {a} times {b}
        np {b} lots of {a}
        ask how much is {a} times {b}
        ask how much is {a} multiplied by {b}
        ask how much is {a} x {b}
        ask what do you get if you multiply {a} by {b}
        ask what do you get if you multiply {a} and {b}
        ask what does {a} times {b} equal
        ask {a} times {b} equals what
        ask what do {a} and {b} multiply to
        do multiply {a} by {b}
        do multiply {a} and {b}
        do multiply {a} with {b}
        do multiply {a} times {b}
        do multiply the numbers {a} and {b}
        do multiply out {a} * {b}
        do calculate {a} * {b}
        do take {a} times {b}
        raw {a}*{b}=
        raw {a} * {b} = ?
        raw {a}x{b}=?
        raw {a} x {b} =
        raw {a}*{b}
        raw {a} times {b} =
        raw {a} × {b} = ?
    """),
}

_UNSEEN = {
    "multiply": cores("""
        np the product of the numbers {a} and {b}
        np the product you get from {a} times {b}
        np the result when {a} is multiplied by {b}
        np the product if I multiply {a} by {b}
        ask what is the result if I multiply {a} and {b}
        ask what does multiplying {a} by {b} give
        ask how much do you get from {a} x {b}
        ask what number is {a} multiplied with {b}
        do multiply together {a} and {b}
        do find the product {a} * {b}
        do work out {a} multiplied by {b}
        raw product of {a} and {b}
        raw {a} times {b} equals
    """),
}

TASK = Task(
    name="multiplication",
    description="multiplies whole numbers",
    range="two whole numbers from 0 to 99",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

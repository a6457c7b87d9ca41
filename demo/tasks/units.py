"""Whole numbers of one unit in a smaller one.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores

_LIMIT = 299
_UNITS: tuple[tuple[tuple[str, ...], tuple[str, ...], int], ...] = (
    (("kilometers", "km", "kilometres"), ("meters", "m", "metres"), 1000),
    (("meters", "m", "metres"), ("centimeters", "cm", "centimetres"), 100),
    (("meters", "metres"), ("millimeters", "mm"), 1000),
    (("centimeters", "cm"), ("millimeters", "mm"), 10),
    (("kilograms", "kg", "kilos"), ("grams", "g"), 1000),
    (("tonnes", "tons"), ("kilograms", "kg"), 1000),
    (("liters", "l", "litres"), ("milliliters", "ml"), 1000),
    (("hours", "h", "hrs"), ("minutes", "min"), 60),
    (("minutes", "min"), ("seconds", "s"), 60),
    (("days",), ("hours", "h"), 24),
    (("weeks",), ("days",), 7),
    (("years",), ("months",), 12),
    (("feet", "ft"), ("inches", "in"), 12),
    (("yards", "yd"), ("feet", "ft"), 3),
    (("pounds", "lb", "lbs"), ("ounces", "oz"), 16),
    (("dozen",), ("pieces", "eggs"), 12),
    (("gallons",), ("quarts",), 4),
    (("euros", "euro"), ("cents", "cent"), 100),
)


def _worked(number: int, factor: int) -> str:
    """Digit by digit from the last, with the carry: "7*12=084+00=084 4*12=048+08=056 0*12=000+05=005"."""
    steps, carry = [], 0
    for digit in reversed(f"{number:03d}"):
        product = int(digit) * factor
        total = product + carry
        steps.append(f"{digit}*{factor}={product:03d}+{carry:02d}={total:03d}")
        carry = total // 10
    return " ".join(steps)


def draw(rng: Random) -> Problem:
    """A number of units; round factors need zeros only, the others are worked digit by digit."""
    number = rng.randint(1, rng.choice((12, 99, _LIMIT)))
    large, small, factor = rng.choice(_UNITS)
    source, target = rng.choice(large), rng.choice(small)
    working = f"{number}*{factor}"
    if factor % 10:
        working += "\n" + _worked(number, factor)
    elif factor == 60:
        working += "\n" + _worked(number, 6)
    return Problem(
        "convert",
        f"{number} {factor} {large[0]}",
        {"n": str(number), "a": source, "b": target},
        working,
        str(number * factor),
    )


_TRAIN = {
    "convert": cores("""
        ask how many {b} are in {n} {a}
        ask how many {b} are in {n} {a}
        ask how many {b} are there in {n} {a}
        ask how many {b} is {n} {a}
        ask how many {b} are {n} {a}
        ask how many {b} make {n} {a}
        ask how many {b} make up {n} {a}
        ask how many {b} do {n} {a} have
        ask how many {b} do you get from {n} {a}
        ask how many {b} does {n} {a} equal
        ask how many {b} equal {n} {a}
        ask how much is {n} {a} in {b}
        ask how much are {n} {a} in {b}
        ask how long is {n} {a} in {b}
        ask {n} {a} is how many {b}
        ask {n} {a} are how many {b}
        ask {n} {a} equals how many {b}
        do convert {n} {a} to {b}
        do convert {n} {a} into {b}
        do convert {n} {a} in {b}
        do convert from {a} to {b}: {n}
        do change {n} {a} to {b}
        do change {n} {a} into {b}
        do turn {n} {a} into {b}
        do express {n} {a} in {b}
        do write {n} {a} in {b}
        do give {n} {a} in {b}
        np {n} {a} in {b}
        np {n} {a} in {b}
        np {n} {a} converted to {b}
        np {n} {a} expressed in {b}
        np the number of {b} in {n} {a}
        np the value of {n} {a} in {b}
        raw {n} {a} to {b}
        raw {n} {a} in {b}
        raw {n} {a} = ? {b}
        raw {n}{a} in {b}
    """),
}

_UNSEEN = {
    "convert": cores("""
        ask how many {b} are there in a total of {n} {a}
        ask how many {b} do {n} {a} make
        ask how many {b} do I get from {n} {a}
        ask how much do {n} {a} make in {b}
        ask what do {n} {a} equal in {b}
        ask {n} {a} make how many {b}
        do express {n} {a} as {b}
        do write {n} {a} as {b}
        do turn {n} {a} to {b}
        np {n} {a} written in {b}
        np the number of {b} that make {n} {a}
        raw {n} {a} into {b}
        raw how many {b} in {n} {a}
    """),
}

TASK = Task(
    name="unit-conversion",
    description="converts lengths, weights, volumes, times and counts to a smaller unit",
    range=f"1 to {_LIMIT} of 18 units (kilometers to meters, hours to minutes, feet to inches, ...)",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

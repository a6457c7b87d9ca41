"""Lists of three to six numbers below 100, put in rising or falling order.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores


def draw(rng: Random) -> Problem:
    """Distinct numbers; the working restates them with two digits each."""
    numbers = rng.sample(range(100), rng.randint(3, 6))
    kind = rng.choice(("rising", "falling"))
    ordered = sorted(numbers, reverse=kind == "falling")
    separator = rng.choice((", ", ", ", " ", ","))
    shown = separator.join(map(str, numbers))
    if separator == ", " and rng.random() < 0.2:
        shown = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    arrow = "<" if kind == "rising" else ">"
    working = arrow + " ".join(f"{n:02d}" for n in numbers)
    key = " ".join(map(str, sorted(numbers)))
    return Problem(kind, key, {"l": shown}, working, ", ".join(map(str, ordered)))


_BLOCK = """
    do sort {l} ORDER
    do sort these numbers ORDER: {l}
    do sort the numbers {l} ORDER
    do sort the list {l} ORDER
    do sort this list ORDER: {l}
    do order {l} ORDER
    do order these numbers ORDER: {l}
    do order the numbers {l} ORDER
    do arrange {l} ORDER
    do arrange the numbers {l} ORDER
    do arrange these numbers ORDER: {l}
    do put {l} in order ORDER
    do put these numbers in order ORDER: {l}
    do put the numbers {l} in order ORDER
    do rank {l} ORDER
    do rank these numbers ORDER: {l}
    do list {l} ORDER
    do list these numbers ORDER: {l}
    np {l} sorted ORDER
    np {l} in order ORDER
    np the numbers {l} sorted ORDER
    np the sorted list of {l} ORDER
    np the list {l} in order ORDER
    ask how do you sort {l} ORDER
    ask how do {l} sort ORDER
    raw sort ORDER: {l}
    raw order ORDER: {l}
    raw {l} ORDER
    raw {l} sorted ORDER
"""

_UNSEEN_BLOCK = """
    do sort the following numbers ORDER: {l}
    do put the list {l} in order ORDER
    do arrange this list ORDER: {l}
    do order the list of numbers {l} ORDER
    do sort all these numbers ORDER: {l}
    np the numbers {l} in order ORDER
    np the order of {l} sorted ORDER
    ask how do you order the numbers {l} ORDER
    raw {l}: sort ORDER
    raw numbers sorted ORDER: {l}
"""

_RISING = (
    "from smallest to largest",
    "in ascending order",
    "from low to high",
    "ascending",
    "from lowest to highest",
    "smallest first",
    "in increasing order",
    "",
)
_FALLING = (
    "from largest to smallest",
    "in descending order",
    "from high to low",
    "descending",
    "from highest to lowest",
    "largest first",
    "in decreasing order",
    "in reverse order",
)
_RISING_UNSEEN = ("from the smallest to the largest", "lowest first", "ascending order")
_FALLING_UNSEEN = ("from the largest to the smallest", "highest first", "descending order")


def _ordered(block: str, orders: tuple[str, ...]) -> str:
    lines = [line.replace("ORDER", order) for line in block.strip().splitlines() for order in orders]
    tidy = (" ".join(line.split()).replace(" :", ":").replace("in order in", "in") for line in lines)
    return "\n".join(line for line in tidy if line not in {"raw {l}", "raw : {l}"})


TASK = Task(
    name="sorting",
    description="sorts lists of numbers in rising or falling order",
    range="three to six different whole numbers from 0 to 99",
    draw=draw,
    train_cores={"rising": cores(_ordered(_BLOCK, _RISING)), "falling": cores(_ordered(_BLOCK, _FALLING))},
    unseen_cores={
        "rising": cores(_ordered(_UNSEEN_BLOCK, _RISING[:4] + _RISING_UNSEEN)),
        "falling": cores(_ordered(_UNSEEN_BLOCK, _FALLING[:4] + _FALLING_UNSEEN)),
    },
)

"""Boolean expressions of two to four truth values.

Knows nothing about other tasks.
"""

from __future__ import annotations

import re
from random import Random

from .base import Problem, Task
from .phrasing import cores

_NOT = re.compile(r"!([01])")
_BRACKETED = re.compile(r"\(([01])([&|])([01])\)")
_PLAIN = re.compile(r"^([01])([&|])([01])$")


def _join(match: re.Match[str]) -> str:
    left, sign, right = match.groups()
    return str(int(left) & int(right)) if sign == "&" else str(int(left) | int(right))


def _atom(rng: Random) -> str:
    return rng.choice(("0", "1", "0", "1", "!0", "!1"))


def _expression(rng: Random) -> str:
    """Symbols: two values, three with brackets around two of them, or two bracketed pairs."""
    a, b, c, d = (_atom(rng) for _ in range(4))
    f, g, h = (rng.choice("&|") for _ in range(3))
    bang = rng.choice(("", "", "!"))
    return rng.choice(
        (
            f"{a}{f}{b}",
            f"{bang}({a}{f}{b})",
            f"{bang}({a}{f}{b}){g}{c}",
            f"{a}{f}{bang}({b}{g}{c})",
            f"({a}{f}{b}){g}({c}{h}{d})",
            f"{bang}({a}{f}{b}){g}({c}{h}{d})",
        )
    )


def _reduce(expression: str) -> list[str]:
    """The expression after each round of rewriting, down to one digit: all "not", then all brackets, then the rest."""
    rounds = [expression]
    while len(rounds[-1]) > 1:
        last = rounds[-1]
        after = _NOT.sub(lambda match: str(1 - int(match[1])), last)
        if after == last:
            after = _BRACKETED.sub(_join, last)
        rounds.append(after if after != last else _PLAIN.sub(_join, last))
    return rounds


def _words(expression: str) -> str:
    for symbol, word in (("0", "false"), ("1", "true"), ("!", "not "), ("&", " and "), ("|", " or ")):
        expression = expression.replace(symbol, word)
    return expression


def draw(rng: Random) -> Problem:
    """An expression in words, sometimes with capitals as in programs."""
    expression = _expression(rng)
    rounds = _reduce(expression)
    shown, roll = _words(expression), rng.random()
    if roll < 0.15:
        shown = shown.upper()
    elif roll < 0.3:
        shown = shown.replace("true", "True").replace("false", "False")
    return Problem("evaluate", expression, {"e": shown}, "\n".join(rounds), "true" if rounds[-1] == "1" else "false")


_TRAIN = {
    "evaluate": cores("""
        np {e}
        np {e}
        np the value of {e}
        np the truth value of {e}
        np the result of {e}
        np the logical value of {e}
        np the Boolean value of {e}
        np the value of the expression {e}
        np the value of the Boolean expression {e}
        np the result of the Boolean expression {e}
        np the result of the logical expression {e}
        ask is {e} true or false
        ask is the expression {e} true
        ask is the statement {e} true or false
        ask is the Boolean expression {e} true
        ask does {e} come out true or false
        ask what does {e} evaluate to
        ask what does the expression {e} evaluate to
        ask what does the Boolean expression {e} give
        ask what do you get for {e}
        ask {e} is true or false
        do evaluate {e}
        do evaluate {e}
        do evaluate the expression {e}
        do evaluate the Boolean expression {e}
        do evaluate the logical expression {e}
        do evaluate this: {e}
        do simplify {e}
        do simplify the Boolean expression {e}
        do solve the logic {e}
        do decide if {e} is true
        do say whether {e} is true or false
        raw evaluate: {e}
        raw {e} =
        raw {e} = ?
        raw true or false: {e}
        raw Boolean: {e}
    """),
}

_UNSEEN = {
    "evaluate": cores("""
        np the truth value of the expression {e}
        np the logical result of {e}
        np the Boolean result of {e}
        ask is the logical expression {e} true or false
        ask what does the logical expression {e} give
        ask does the expression {e} evaluate to true or false
        do evaluate this Boolean expression: {e}
        do simplify the logical expression {e}
        do say if the expression {e} is true
        do decide whether {e} is true or false
        raw logic: {e}
        raw value of {e}
    """),
}

TASK = Task(
    name="boolean-logic",
    description="evaluates expressions of true, false, and, or, not",
    range="two to four truth values with brackets",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

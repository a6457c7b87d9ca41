"""Whether round, square and curly brackets are balanced.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_DEEPEST = 4


def _balanced(rng: Random, pairs: int, depth: int = 1) -> str:
    """A balanced string of so many pairs, at most _DEEPEST deep."""
    if pairs == 0:
        return ""
    inside = rng.randint(0, pairs - 1) if depth < _DEEPEST else 0
    opener = rng.choice(list(_PAIRS))
    return opener + _balanced(rng, inside, depth + 1) + _PAIRS[opener] + _balanced(rng, pairs - 1 - inside, depth)


def _spoiled(text: str, rng: Random) -> str:
    """One bracket dropped, changed, or two swapped."""
    i = rng.randrange(len(text))
    roll = rng.random()
    if roll < 0.4:
        return text[:i] + text[i + 1 :]
    if roll < 0.8:
        return text[:i] + rng.choice("()[]{}") + text[i + 1 :]
    j = rng.randrange(len(text))
    letters = list(text)
    letters[i], letters[j] = letters[j], letters[i]
    return "".join(letters)


def _walk(text: str) -> tuple[str, bool]:
    """Each bracket with the stack that it leaves, until one does not fit: "((,[([,](,)." """
    stack = ""
    steps: list[str] = []
    for bracket in text:
        if bracket in _PAIRS:
            stack += bracket
        elif stack and _PAIRS[stack[-1]] == bracket:
            stack = stack[:-1]
        else:
            return ",".join([*steps, bracket + "!"]), False
        steps.append(bracket + (stack or "."))
    return ",".join(steps), not stack


def draw(rng: Random) -> Problem:
    """A string of brackets, balanced as often as not."""
    text = _balanced(rng, rng.randint(1, 6))
    if rng.random() < 0.5:
        text = _spoiled(text, rng) or "("
    working, good = _walk(text)
    shown = rng.choice(("<>", "<>", '"<>"', "'<>'")).replace("<>", text)
    return Problem("check", text, {"s": shown}, working, "yes" if good else "no")


_TRAIN = {
    "check": cores("""
        ask are the brackets in {s} balanced
        ask are the brackets {s} balanced
        ask are the brackets of {s} balanced
        ask are these brackets balanced: {s}
        ask are all brackets in {s} closed
        ask are all the brackets closed in {s}
        ask are the brackets in {s} matched
        ask are the parentheses in {s} balanced
        ask are these parentheses balanced: {s}
        ask are the parentheses {s} matched
        ask do the brackets in {s} match
        ask do the brackets {s} match
        ask do these brackets match: {s}
        ask do the parentheses in {s} match
        ask does every bracket in {s} close
        ask does each bracket in {s} have a match
        ask is {s} balanced
        ask is the string {s} balanced
        ask is the bracket string {s} balanced
        ask is {s} a balanced string of brackets
        ask is every bracket in {s} closed
        ask is the bracket sequence {s} valid
        ask is {s} a valid bracket sequence
        ask has {s} balanced brackets
        do check if the brackets in {s} are balanced
        do check whether the brackets {s} match
        do check the brackets in {s}
        do check the brackets: {s}
        do check if {s} is balanced
        do check the parentheses in {s}
        do say if the brackets in {s} are balanced
        do decide if {s} has balanced brackets
        do find out whether the brackets in {s} match
        raw balanced brackets? {s}
        raw brackets {s} balanced?
        raw {s} balanced?
        raw {s}: do the brackets match?
    """),
}

_UNSEEN = {
    "check": cores("""
        ask are all the brackets in {s} matched
        ask are the brackets in the string {s} balanced
        ask do all the brackets in {s} match
        ask is every bracket matched in {s}
        ask is {s} a string of balanced brackets
        ask does the string {s} have balanced brackets
        do check whether the brackets in {s} are balanced
        do find out if the parentheses {s} are balanced
        do say whether {s} is balanced
        raw are brackets balanced: {s}
        raw brackets matched? {s}
    """),
}

TASK = Task(
    name="brackets",
    description="tells whether brackets are balanced",
    range="up to 12 round, square and curly brackets, at most 4 deep; yes or no",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

"""The skills of the demo composition, by expert name, in the order in which they are trained.

Knows nothing about models: each task makes questions and their computed answers.
"""

from __future__ import annotations

from . import (
    arithmetic,
    bases,
    boolean,
    brackets,
    caesar,
    leap,
    letters,
    morse,
    multiplication,
    number_words,
    reversal,
    roman,
    sorting,
    sql,
    units,
    weekday,
)
from .base import Example, Problem, Split, Task, is_held_out

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        roman.TASK,
        arithmetic.TASK,
        weekday.TASK,
        reversal.TASK,
        multiplication.TASK,
        number_words.TASK,
        boolean.TASK,
        units.TASK,
        sorting.TASK,
        bases.TASK,
        caesar.TASK,
        morse.TASK,
        sql.TASK,
        brackets.TASK,
        letters.TASK,
        leap.TASK,
    )
}

__all__ = ["TASKS", "Example", "Problem", "Split", "Task", "is_held_out"]

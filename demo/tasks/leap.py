"""Leap years, and the number of days in a month or a year.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores
from .weekday import MONTHS, is_leap

_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _rule(year: int) -> str:
    """The part of the year that decides: "2000: 00 20%4=0 L", "1987: 87%4=3 N"."""
    century, short = divmod(year, 100)
    test = f"{short:02d}%4={short % 4}" if short else f"00 {century}%4={century % 4}"
    return f"{year}: {test} {'L' if is_leap(year) else 'N'}"


def draw(rng: Random) -> Problem:
    """A question on a year between 1600 and 2399, with full centuries drawn more often than chance would."""
    year = rng.randrange(1600, 2400)
    if rng.random() < 0.1:
        year = rng.randrange(16, 24) * 100
    kind = rng.choice(("leap", "leap", "month", "month", "year"))
    if kind == "leap":
        return Problem(kind, str(year), {"y": str(year)}, _rule(year), "yes" if is_leap(year) else "no")
    if kind == "year":
        return Problem(kind, str(year), {"y": str(year)}, _rule(year), str(365 + is_leap(year)))
    month = 1 if rng.random() < 0.5 else rng.randrange(12)
    days = _LENGTHS[month] + (month == 1 and is_leap(year))
    slots = {"m": MONTHS[month], "y": str(year)}
    return Problem(kind, str(year), slots, f"{_rule(year)} {month + 1:02d}", str(days))


_TRAIN = {
    "leap": cores("""
        ask is {y} a leap year
        ask is {y} a leap year
        ask was {y} a leap year
        ask was the year {y} a leap year
        ask will {y} be a leap year
        ask is the year {y} a leap year
        ask is {y} leap
        ask is {y} a leap year or not
        ask is it true that {y} is a leap year
        ask does {y} count as a leap year
        ask does the year {y} have a leap day
        ask does {y} have a leap day
        ask did {y} have a leap day
        ask is there a leap day in {y}
        ask is there a 29 February in {y}
        ask was there a 29 February in {y}
        ask does {y} have a 29 February
        do check if {y} is a leap year
        do check whether {y} is a leap year
        do tell if {y} is a leap year
        do tell me if {y} is a leap year
        do tell me whether {y} was a leap year
        do say if {y} is a leap year
        do say whether {y} is a leap year
        do decide if the year {y} is a leap year
        do find out if {y} was a leap year
        raw leap year {y}?
        raw {y} leap year?
        raw {y}: leap year or not?
    """),
    "month": cores("""
        ask how many days are in {m} {y}
        ask how many days are there in {m} {y}
        ask how many days are there in {m} of {y}
        ask how many days does {m} {y} have
        ask how many days did {m} {y} have
        ask how many days does {m} have in {y}
        ask how many days did {m} have in {y}
        ask how many days has {m} {y}
        ask how many days were in {m} {y}
        ask how many days were there in {m} {y}
        ask how many days long is {m} {y}
        ask how many days long was {m} of {y}
        ask how long is {m} {y} in days
        ask how long was {m} {y}
        do count the days in {m} {y}
        do count the days of {m} {y}
        do count the number of days in {m} {y}
        np the number of days in {m} {y}
        np the number of days in {m} of the year {y}
        np the length of {m} {y}
        np the length of {m} {y} in days
        raw days in {m} {y}
        raw {m} {y}: how many days?
    """),
    "year": cores("""
        ask how many days are in {y}
        ask how many days are in the year {y}
        ask how many days are there in {y}
        ask how many days are there in the year {y}
        ask how many days does {y} have
        ask how many days did the year {y} have
        ask how many days has {y}
        ask how many days were in {y}
        ask how many days were there in {y}
        ask how many days long is {y}
        ask how many days long was the year {y}
        ask how long is the year {y} in days
        do count the days in {y}
        do count the days of the year {y}
        do count the number of days in {y}
        np the number of days in {y}
        np the number of days in the year {y}
        np the length of the year {y}
        np the length of {y} in days
        raw days in {y}
        raw days in the year {y}
    """),
}

_UNSEEN = {
    "leap": cores("""
        ask will the year {y} be a leap year
        ask was {y} leap
        ask did the year {y} have a 29 February
        ask was there a leap day in {y}
        ask is it true that the year {y} was a leap year
        do find out whether {y} is a leap year
        do check if the year {y} was a leap year
        do decide whether {y} was a leap year
        raw was {y} leap or not?
        raw the year {y}: leap?
    """),
    "month": cores("""
        ask how many days has {m} in {y}
        ask how many days were there in {m} of {y}
        ask how long was {m} {y} in days
        ask how many days did {m} of {y} have
        do count how many days {m} {y} has
        np the number of days {m} had in {y}
        np the number of days of {m} {y}
        raw length of {m} {y}
        raw number of days in {m} {y}
    """),
    "year": cores("""
        ask how many days has the year {y}
        ask how many days were there in the year {y}
        ask how long was {y} in days
        ask how many days did {y} have
        do count how many days {y} has
        np the number of days {y} had
        np the number of days of the year {y}
        raw number of days in {y}
    """),
}

TASK = Task(
    name="leap-years",
    description="knows leap years and how many days a month or a year has",
    range="years 1600 to 2399",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

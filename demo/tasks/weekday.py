"""The day of the week of any date from 1900 to 2099, by codes for year, month and day that add up modulo seven.

Knows nothing about other tasks.
"""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from .base import Problem, Task
from .phrasing import cores

_FIRST = date(1900, 1, 1)
_DAYS = (date(2099, 12, 31) - _FIRST).days + 1
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTH_CODES = (0, 3, 3, 6, 1, 4, 6, 2, 5, 0, 3, 5)


def is_leap(year: int) -> bool:
    """The Gregorian rule."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _ordinal(day: int) -> str:
    ending = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def show_date(day: date, rng: Random) -> str:
    """A date as people write it, British, American or ISO."""
    month = MONTHS[day.month - 1]
    style = rng.randrange(6)
    if style == 0:
        month = month[:3]
    if style in (0, 1):
        return f"{day.day} {month} {day.year}"
    if style == 2:
        return f"{month} {day.day}, {day.year}"
    if style == 3:
        return f"{_ordinal(day.day)} {rng.choice(('', 'of '))}{month} {day.year}"
    return f"{month} {_ordinal(day.day)}, {day.year}" if style == 4 else day.isoformat()


def working(day: date) -> str:
    """The date in figures, then the codes of year (with its leap days), month and day, each added modulo seven."""
    century, short = divmod(day.year, 100)
    base = 0 if century == 19 else 6
    year = (base + short % 7 + short // 4 % 7) % 7
    flag = "L" if is_leap(day.year) and day.month <= 2 else "N"
    month = (_MONTH_CODES[day.month - 1] - (flag == "L")) % 7
    total = (year + month) % 7
    last = (total + day.day) % 7
    first = f"{century} {short:02d} {short % 7}+{short // 4 % 7}+{base}={year}"
    second = f"{flag}{day.month:02d} {year}+{month}={total}"
    return f"{day.isoformat()}\n{first}\n{second}\n{day.day:02d} {total}+{day.day % 7}={last}"


def draw(rng: Random) -> Problem:
    """A date and its weekday."""
    day = _FIRST + timedelta(days=rng.randrange(_DAYS))
    return Problem("date", day.isoformat(), {"d": show_date(day, rng)}, working(day), NAMES[day.isoweekday() % 7])


_TRAIN = {
    "date": cores("""
        ask what day of the week was {d}
        ask what day of the week is {d}
        ask what day was {d}
        ask what day is {d}
        ask what weekday was {d}
        ask what weekday is {d}
        ask which weekday was {d}
        ask which weekday is {d}
        ask which day of the week was {d}
        ask which day of the week is {d}
        ask which day of the week does {d} fall on
        ask what day of the week did {d} fall on
        ask what day of the week does {d} fall on
        ask what weekday does {d} fall on
        ask what weekday did {d} fall on
        ask what day does {d} fall on
        ask on what day of the week was {d}
        ask on what weekday was {d}
        ask on which weekday does {d} fall
        ask on which day of the week did {d} fall
        ask {d} was what day of the week
        ask {d} is which weekday
        ask {d} falls on what day of the week
        np the day of the week of {d}
        np the day of the week on {d}
        np the day of the week for {d}
        np the weekday of {d}
        np the weekday for {d}
        np the weekday on {d}
        np the name of the weekday on {d}
        do find the weekday of {d}
        do name the weekday of {d}
        do name the day of the week of {d}
        do name the day of the week for {d}
        raw weekday of {d}
        raw weekday {d}
        raw {d}: what day of the week?
        raw {d} weekday?
    """),
}

_UNSEEN = {
    "date": cores("""
        ask which weekday did {d} fall on
        ask which weekday does {d} fall on
        ask on which day of the week was {d}
        ask on what weekday does {d} fall
        ask what day of the week was it on {d}
        ask what was the weekday of {d}
        ask what is the weekday on {d}
        ask {d} fell on which day of the week
        np the name of the day of the week on {d}
        np the weekday that {d} falls on
        do name the weekday for {d}
        do find the day of the week for {d}
        raw day of the week for {d}
        raw {d}: which weekday?
    """),
}

TASK = Task(
    name="weekday",
    description="names the day of the week of a date",
    range="dates from 1 January 1900 to 31 December 2099",
    draw=draw,
    train_cores=_TRAIN,
    unseen_cores=_UNSEEN,
)

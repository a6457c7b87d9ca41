"""Simple English requests turned into SQL.

Knows nothing about other tasks.
"""

from __future__ import annotations

from random import Random

from .base import Problem, Task
from .phrasing import cores

_TABLES = {
    "customers": (("name", "email", "city", "phone"), ("age", "balance", "orders"), "city"),
    "employees": (("name", "title", "office", "email"), ("age", "salary", "level"), "office"),
    "products": (("name", "brand", "color", "code"), ("price", "stock", "weight"), "brand"),
    "books": (("title", "author", "genre", "publisher"), ("pages", "price", "year"), "genre"),
    "students": (("name", "school", "email", "teacher"), ("age", "grade", "score"), "school"),
    "orders": (("status", "customer", "date", "code"), ("total", "quantity", "discount"), "status"),
    "movies": (("title", "director", "genre", "studio"), ("year", "rating", "length"), "genre"),
    "cars": (("model", "brand", "color", "owner"), ("year", "price", "speed"), "brand"),
}
_VALUES = (
    "Paris",
    "London",
    "Berlin",
    "Rome",
    "red",
    "blue",
    "green",
    "black",
    "Acme",
    "Nova",
    "Orion",
    "Delta",
    "open",
    "closed",
    "drama",
    "comedy",
    "history",
    "science",
    "north",
    "south",
    "gold",
    "basic",
)
_COMPARISONS = {
    "more than": ">",
    "greater than": ">",
    "over": ">",
    "above": ">",
    "less than": "<",
    "under": "<",
    "below": "<",
    "at least": ">=",
    "at most": "<=",
    "equal to": "=",
    "exactly": "=",
}


def draw(rng: Random) -> Problem:
    """A column, a count or all of a table, with or without one condition."""
    table = rng.choice(list(_TABLES))
    texts, numbers, grouped = _TABLES[table]
    column, measure, value = rng.choice(texts + numbers), rng.choice(numbers), rng.randint(1, 999)
    kind = rng.choice(("column", "all", "compare", "compare", "equals", "count", "count_where", "average"))
    words, sign = rng.choice(list(_COMPARISONS.items()))
    text = rng.choice(_VALUES)
    where = {
        "compare": f" WHERE {measure} {sign} {value}",
        "count_where": f" WHERE {measure} {sign} {value}",
        "equals": f" WHERE {grouped} = '{text}'",
    }.get(kind, "")
    selected = {"all": "*", "count": "COUNT(*)", "count_where": "COUNT(*)", "average": f"AVG({measure})"}
    statement = f"SELECT {selected.get(kind, column)} FROM {table}{where};"
    slots = {"t": table, "c": column, "m": measure, "o": words, "v": str(value), "g": grouped, "x": text}
    return Problem(kind, statement, slots, "", statement)


_BLOCK = """
    do write SQL for THING
    do write SQL to get THING
    do write an SQL query for THING
    do write an SQL query to get THING
    do write an SQL query that returns THING
    do write an SQL statement for THING
    do write a query in SQL for THING
    do write a query in SQL to find THING
    do make an SQL query for THING
    do make an SQL statement to show THING
    do use SQL to get THING
    do use SQL to find THING
    do use SQL to show THING
    do use SQL to select THING
    do select THING in SQL
    do select THING with SQL
    do get THING with an SQL query
    do show THING using SQL
    do find THING using SQL
    do query THING in SQL
    do translate to SQL: get THING
    do translate into SQL: show THING
    do turn this into SQL: find THING
    np the SQL for THING
    np the SQL query for THING
    np the SQL to get THING
    np the SQL statement for THING
    np an SQL query for THING
    ask how do I get THING in SQL
    ask how do you select THING in SQL
    ask how do I query THING with SQL
    ask which SQL query returns THING
    raw SQL: THING
    raw SQL query: THING
    raw SQL for THING
    raw SQL, get THING
"""

_UNSEEN_BLOCK = """
    do write an SQL statement to find THING
    do make a query in SQL to get THING
    do make SQL that returns THING
    do show THING with an SQL statement
    do turn into SQL: show THING
    np the query in SQL for THING
    np an SQL statement to get THING
    ask how do you find THING using SQL
    ask which SQL statement selects THING
    raw SQL to show THING
    raw query in SQL: THING
"""

_THINGS = {
    "column": "the {c} of all {t}|the {c} of every row in {t}|every {c} from {t}|"
    "the {c} column of {t}|the {c} from {t}",
    "all": "all {t}|everything from {t}|all rows of {t}|every row from {t}|the whole table {t}",
    "compare": "the {c} of {t} with {m} {o} {v}|the {c} of all {t} where {m} is {o} {v}|"
    "the {c} from {t} with a {m} {o} {v}|the {c} of {t} whose {m} is {o} {v}",
    "equals": "the {c} of {t} with {g} {x}|the {c} of all {t} where {g} is {x}|the {c} of {t} whose {g} is {x}",
    "count": "the number of {t}|the number of rows in {t}|how many {t} there are|the count of {t}",
    "count_where": "the number of {t} with {m} {o} {v}|how many {t} have a {m} {o} {v}|"
    "the count of {t} where {m} is {o} {v}|the number of {t} whose {m} is {o} {v}",
    "average": "the average {m} of {t}|the average {m} of all {t}|the mean {m} of {t}|the average {m} in {t}",
}


def _filled(block: str, kind: str) -> str:
    return "\n".join(block.replace("THING", thing) for thing in _THINGS[kind].split("|"))


TASK = Task(
    name="sql",
    description="turns simple English requests into SQL queries",
    range="one table of eight, one column, COUNT or AVG, at most one condition with numbers from 1 to 999",
    draw=draw,
    train_cores={kind: cores(_filled(_BLOCK, kind)) for kind in _THINGS},
    unseen_cores={kind: cores(_filled(_UNSEEN_BLOCK, kind)) for kind in _THINGS},
)

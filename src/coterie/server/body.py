"""The JSON of bodies: decodes requests, and encodes answers.

A request has no values that JSON or Unicode cannot represent, so that it can be echoed. An answer is encoded in pieces,
so that other threads run meanwhile.
Knows nothing about fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

from coterie.core.errors import RequestError, check_unicode

BODY = "body"
MAX_DEPTH = 100  # nesting of lists and objects: deeper than any schema, and far below Python's recursion limit
MAX_PLACE = 80  # characters
_TO_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # in UTF-8, a lone surrogate can only be written as an escape


def parsed(body: bytes | bytearray | str, where: str = BODY) -> Any:
    """The decoded JSON of a body, or of what `where` names. Raises RequestError that says where it is invalid.

    NaN, infinities, numbers beyond a double, lone surrogates and nesting beyond MAX_DEPTH are refused.
    """
    try:
        text = body if isinstance(body, str) else bytes(body).decode("utf-8-sig")
        found = json.loads(text, parse_constant=_no_number, parse_float=_double)
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos : error.pos + 20]
        there = f"there is {rest!r}" if rest else "it ends" if error.pos else "it is empty"
        fact = f"is not JSON at line {error.lineno}, column {error.colno}: {error.msg}, but {there}"
    except UnicodeDecodeError as error:
        fact = f"is not JSON: byte {error.start} is 0x{error.object[error.start]:02x}, which is no UTF-8"
    except RecursionError:
        fact = "is nested too deeply"
    except ValueError as error:
        fact = f"is not JSON: {error}"
    else:
        _check(found, where, isinstance(body, str) or bool(_ESCAPED_HALF.search(text)))
        return found
    raise RequestError(where, fact, "give an object, in UTF-8")


def written(found: Mapping[str, Any], run: int, within: int = 0) -> bytes:
    """An answer as JSON, in UTF-8.

    Long lists are encoded `run` items at a time; lists of lists item by item, `within` levels deep. An iterator is
    encoded as a list whose items are created on the way.

    The library encodes a list without releasing the GIL, which for millions of numbers takes seconds.
    """
    return b"".join(_pieces(found, run, within))


def _pieces(value: object, run: int, within: int) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        for place, (name, item) in enumerate(value.items()):
            yield (b",%s:" if place else b"{%s:") % _TO_JSON.encode(name).encode()
            yield from _pieces(item, run, within)
        yield b"}" if value else b"{}"
    elif isinstance(value, Iterator):
        more = False
        while items := list(islice(value, run)):
            yield (b"," if more else b"[") + _TO_JSON.encode(items)[1:-1].encode()
            more = True
        yield b"]" if more else b"[]"
    elif isinstance(value, list) and (within or len(value) > run):
        for first in range(0, len(value), 1 if within else run):
            yield b"," if first else b"["
            if within:
                yield from _pieces(value[first], run, within - 1)
            else:
                yield _TO_JSON.encode(value[first : first + run])[1:-1].encode()
        yield b"]" if value else b"[]"
    else:
        yield _TO_JSON.encode(value).encode()


def _check(value: object, where: str, texts: bool, depth: int = 0) -> None:
    """Raise RequestError for excessive nesting and, with `texts`, for strings that are not valid Unicode."""
    if isinstance(value, str):
        if texts:
            check_unicode(value, where[:MAX_PLACE])
        return
    if depth == MAX_DEPTH:
        raise RequestError(where[:MAX_PLACE], f"is nested too deeply, beyond {MAX_DEPTH} levels", "nest less")
    if isinstance(value, dict):
        for name, item in value.items():
            _check(name, where, texts)
            if isinstance(item, dict | list | str):
                _check(item, name if where == BODY else f"{where}.{name}", texts, depth + 1)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if isinstance(item, dict | list | str):
                _check(item, f"{where}[{place}]", texts, depth + 1)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number there")


def _double(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"{digits[:40]} is more than a double holds")
    return found

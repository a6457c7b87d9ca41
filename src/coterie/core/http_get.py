"""A single HTTP GET of JSON, for commands that query a running server.

Knows nothing about paths, or about what the answers mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from coterie.core.errors import UsageError

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `body`: parsed JSON, or None if it was not JSON."""

    status: int
    reason: str
    body: Any


def get_json(url: str, path: str, headers: Mapping[str, str]) -> Answer:
    """GET `path` of the server at `url`. Raises UsageError if `url` is malformed or no server answers there."""
    no_address = UsageError("--url", f"{url!r} is no address of a server", "give one like http://127.0.0.1:8000")
    if not url.startswith(("http://", "https://")):
        raise no_address
    try:
        with urlopen(Request(f"{url.rstrip('/')}{path}", headers=dict(headers)), timeout=TIMEOUT_S) as answer:
            return Answer(answer.status, answer.reason, _parsed(answer.read()))
    except HTTPError as error:
        return Answer(error.code, str(error.reason), _parsed(_rest(error)))
    except (OSError, HTTPException) as error:
        fact = f"no server answers: {getattr(error, 'reason', error)}"
        raise UsageError(url, fact, "start one with coterie serve, or say with --url where it is") from error
    except ValueError as error:
        raise no_address from error


def _rest(error: HTTPError) -> bytes:
    """The body of an error response, or nothing if it cannot be read: the status matters more."""
    try:
        return error.read()
    except (OSError, HTTPException):
        return b""


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None

"""The form of an answer, from options: a JSON schema, in a file or inline, or any JSON object.

Knows nothing about how a form is enforced.
"""

from __future__ import annotations

import json
from pathlib import Path

from coterie.checkpoint.files import read_text
from coterie.checkpoint.grammar import ANY_OBJECT
from coterie.core.errors import RequestError
from coterie.core.paths import user_path
from coterie.server.body import parsed

OPTION = "--json-schema"


def form_of(schema: str | None, any_object: bool) -> str:
    """A query's form; empty for none. `schema` is inline if it begins with a brace, else a file. Raises UsageError."""
    if schema is None:
        return ANY_OBJECT if any_object else ""
    if any_object:
        raise RequestError(OPTION, "is given with --json-object", "drop one of them")
    given = schema.lstrip().startswith("{")
    where = OPTION if given else schema
    found = parsed(schema if given else _read(schema), where)
    if not isinstance(found, dict):
        raise RequestError(where, f"is a JSON {type(found).__name__}", "give a schema that is an object")
    return json.dumps(found)


def _read(file: str) -> str:
    if not file.strip():
        raise RequestError(OPTION, "is empty", "give a JSON schema, or a file that holds one")
    return read_text(user_path(Path(file), OPTION))

"""Input items of stored responses: each with an id, its type and its parts; listed in pages.

Knows nothing about models or answers. Source: the OpenAI API reference, "List input items".
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.core.errors import RequestError, shown

MAX_PAGE, USUAL_PAGE = 100, 20
_LETTERS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_TO_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def kept_items(given: str | Sequence[Mapping[str, Any]]) -> bytes:
    """A validated input as a JSON list of items, in UTF-8."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return _TO_JSON([_whole(item) for item in items]).encode()


def _whole(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item with the fields that clients may omit."""
    kind = item.get("type") or "message"
    own_id = item.get("id")
    is_named = isinstance(own_id, str) and own_id
    made = {**item, "type": kind, "id": own_id if is_named else f"{_LETTERS[kind]}_{secrets.token_hex(12)}"}
    if kind == "reasoning":
        return {**made, "summary": item.get("summary") or []}
    content = item.get("content")
    if kind == "message" and isinstance(content, str):
        own = {"type": "output_text", "annotations": []} if item.get("role") == "assistant" else {"type": "input_text"}
        made["content"] = [{**own, "text": content}]
    return {**made, "status": item.get("status") or "completed"}


def page_of(items: Sequence[Mapping[str, Any]], asked: Mapping[str, str]) -> dict[str, Any]:
    """The page of a list that a query requests by `limit`, `order` and `after`. Raises RequestError."""
    limit, order, after = asked.get("limit", str(USUAL_PAGE)), asked.get("order", "desc"), asked.get("after")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_PAGE):
        raise RequestError("limit", f"is {shown(limit)}", f"give 1 to {MAX_PAGE}")
    if order not in ("asc", "desc"):
        raise RequestError("order", f"is {shown(order)}", "use asc or desc")
    found = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        ids = [item["id"] for item in found]
        if after not in ids:
            raise RequestError("after", f"is {shown(after)}, which no item has for its id", "give one of a page's")
        found = found[ids.index(after) + 1 :]
    page = found[: int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(found) > len(page)}

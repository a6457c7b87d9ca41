"""Tool calls as Apertus writes them: JSON objects whose only key is the function's name.

    [{"add": {"a": 1}}, {"now": {}}]

Knows nothing about marks around calls, or tokens. Source: the chat template of Apertus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from coterie.checkpoint.tagged import Layout, Read, Schema, Special, literal


@dataclass(frozen=True)
class NameKeyed(Layout):
    """A list of objects, each {name: arguments}."""

    def read(self, text: str, tools: Mapping[str, Schema]) -> list[Read]:
        """All calls of a block; none if it is malformed."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return []
        found = [tuple(item.items()) for item in value if isinstance(item, dict)] if isinstance(value, list) else []
        if not found or len(found) < len(value) or any(len(pairs) != 1 for pairs in found):
            return []
        return [pairs[0] for pairs in found]

    def rules(self, number: int, name: str, schema: Schema, _: Special) -> Iterator[str]:
        """The grammar of a call, in llguidance's Lark, as the rule `call_NUMBER`."""
        head = f"{{{json.dumps(name, ensure_ascii=False)}: "
        yield f'call_{number}: {literal(head)} arguments_{number} "}}"'
        yield f"arguments_{number}: %json {json.dumps(schema)}"

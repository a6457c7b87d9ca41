"""Reads a knn router's examples: a JSON Lines file of experts, each with a prompt that it should answer.

Knows nothing about routers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coterie.composition.routers.knn import Example
from coterie.composition.validate import nearest
from coterie.core.errors import CompositionError
from coterie.core.lines import json_lines

_REMEDY = 'write {"expert": "...", "prompt": "..."}, with an expert of "" where none should answer'


def read_examples(path: Path, names: Sequence[str], fallback: str) -> tuple[Example, ...]:
    """Read examples, one JSON object per line with expert and prompt; other keys are ignored.

    An expert of "" or null means the fallback. Raises NotFoundError, or CompositionError naming the line.
    """
    known = set(names)
    examples = []
    for where, values in json_lines(path, "examples", CompositionError):
        text, expert = values.get("prompt"), values.get("expert", 0)
        if not isinstance(text, str) or not text.strip():
            raise CompositionError(where, "there is no prompt in this line", _REMEDY)
        if not isinstance(expert, str | None):
            raise CompositionError(where, "there is no expert in this line", _REMEDY)
        if expert and expert not in known:
            close = nearest(expert, names)
            hint = f"did you mean {' or '.join(close)}?" if close else _REMEDY
            raise CompositionError(where, f"expert = {expert!r} is not an expert of this composition", hint)
        examples.append(Example(expert or fallback, text))
    return tuple(examples)

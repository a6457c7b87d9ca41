"""How much of a prompt its image takes, in graphs that put rows of an image in the place of tokens.

Knows nothing about what makes those rows.
"""

from __future__ import annotations

from coterie.core.errors import UsageError
from coterie.core.shapes import Times
from coterie.graph.ir import Graph


def image_tokens(graph: Graph) -> int:
    """Tokens of each sequence's prompt that stand for rows of its image; 0 where there is none."""
    shapes = [graph.values[op.inputs[2]].shape for op in graph.ops if op.kind == "merge_rows"]
    return sum(shape[0].rows for shape in shapes if isinstance(shape[0], Times))


def check_image_fits(graph: Graph, tokens: int, option: str) -> None:
    """Raise UsageError for prompts that are too short for an image and a token beside it."""
    rows = image_tokens(graph)
    if rows and tokens <= rows:
        fact = f"a prompt has {tokens} tokens, but the image of {graph.name} alone takes {rows}"
        raise UsageError(option, fact, f"give {rows + 1} or more")

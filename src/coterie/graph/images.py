"""How many tokens of a prompt its image occupies, in graphs that replace tokens by rows of an image.

Knows nothing about how those rows are computed.
"""

from __future__ import annotations

from coterie.core.errors import UsageError
from coterie.core.shapes import Times
from coterie.graph.ir import Graph


def image_tokens(graph: Graph) -> int:
    """Number of tokens in each sequence's prompt that stand for rows of its image; 0 if there is none."""
    shapes = [graph.values[op.inputs[2]].shape for op in graph.ops if op.kind == "merge_rows"]
    return sum(shape[0].rows for shape in shapes if isinstance(shape[0], Times))


def check_image_fits(graph: Graph, tokens: int, option: str) -> None:
    """Raise UsageError if `tokens` are too few for a prompt of an image and at least one other token."""
    rows = image_tokens(graph)
    if rows and tokens <= rows:
        fact = f"a prompt has {tokens} tokens, but the image of {graph.name} alone takes {rows}"
        raise UsageError(option, fact, f"give {rows + 1} or more")

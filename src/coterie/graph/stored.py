"""Elements and bytes of a value in a step; for a sparse one, those that are stored.

Knows nothing about which op reads how much of it (cost.py).
"""

from __future__ import annotations

from coterie.core.shapes import Sizes
from coterie.graph.ir import Kind, Value


def value_bytes(value: Value, sizes: Sizes) -> int:
    """Bytes of a whole value in this step; if sparse, those that are stored, including a weight's pattern."""
    if value.density == 1.0:
        return value.dtype.tensor_bytes([sizes.of(dim) for dim in value.shape])
    pattern = pattern_bytes(value, sizes) if value.kind is Kind.WEIGHT else 0
    return elements(value, sizes) * value.dtype.size_bytes + pattern


def elements(value: Value, sizes: Sizes) -> int:
    """Elements of a value that are stored and computed."""
    whole = sizes.count(value.shape)
    return whole if value.density == 1.0 else round(value.density * whole)


def pattern_bytes(value: Value, sizes: Sizes) -> int:
    """Bytes of a sparse weight's pattern, one bit per element; 0 for a dense value."""
    return -(-sizes.count(value.shape) // 8) if value.density != 1.0 else 0

"""Gemma 4 in GGUF: reduces what its file says per layer, or only by its tensors, to keys with one value each.

    head_count_kv [2, 2, 1]   pattern [yes, yes, no]     -> 2 with a window, 1 without
    rope_freqs.weight         1 1 1e30 1e30              -> half of a head's pairs are rotated
    no blk.2.attn_v.weight                               -> values are keys

Knows nothing about files. Source: the keys that llama.cpp's converter writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.gguf.file import GgufTensor
from coterie.models.gguf.rope import FREQS

KV, WIDTH, PATTERN = "attention.head_count_kv", "feed_forward_length", "attention.sliding_window_pattern"
SHARED, INPUTS = "attention.shared_kv_layers", "embedding_length_per_layer_input"
SWA = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
# Keys that are derived here.
FULL_KV, DOUBLE, TURNING, INPUT_ROWS, KEYS_ARE_VALUES = "full_kv", "double", "turning", "input_rows", "keys_are_values"
MADE = (FULL_KV, DOUBLE, TURNING, INPUT_ROWS, KEYS_ARE_VALUES)
_NEVER = 1e20  # a factor at least this large means a pair is not rotated


def with_single_values(keys: Mapping[str, Any], tensors: Mapping[str, GgufTensor], where: str) -> dict[str, Any]:
    """The keys with numbers instead of lists, and the derived ones (MADE). Raises CheckpointError, UnsupportedError."""
    found = dict(keys)
    pattern, layers = keys.get(PATTERN), keys.get("block_count")
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise CheckpointError(where, f"{PATTERN} is {pattern!r}, where {layers!r} flags are expected", "get it again")
    shared = keys.get(SHARED) or 0
    found[KV], found[FULL_KV] = _by_pattern(keys.get(KV), pattern, where)
    found[WIDTH], found[DOUBLE] = _widths(keys.get(WIDTH), len(pattern) - shared, where)
    full = next((layer for layer, windowed in enumerate(pattern) if not windowed), None)
    found[KEYS_ARE_VALUES] = full is not None and f"blk.{full}.attn_v.weight" not in tensors
    found[TURNING] = _turning(tensors, where)
    table = tensors.get("per_layer_token_embd.weight")
    found[INPUT_ROWS] = table.shape[0] if table else None
    odd = [key for key in SWA if keys.get(key) != keys.get(SWA[0])]
    if odd:
        fact = f"{odd[0]} is {keys.get(odd[0])!r} beside {SWA[0]} {keys.get(SWA[0])!r}"
        raise UnsupportedError(where, fact, "use a model where they are equal")
    return found


def _by_pattern(heads: Any, pattern: Sequence[Any], where: str) -> tuple[Any, Any]:
    """The key/value heads of layers with a window, and of the others."""
    if not isinstance(heads, list):
        return heads, heads
    pairs = list(zip(heads, pattern, strict=False))
    of = [{count for count, windowed in pairs if bool(windowed) is kind} for kind in (True, False)]
    if len(heads) != len(pattern) or any(len(counts) > 1 for counts in of):
        raise UnsupportedError(where, f"{KV} is {heads!r}: layers of one type differ", "use a model where they do not")
    windowed, full = (next(iter(counts), None) for counts in of)
    return windowed or full, full or windowed


def _widths(widths: Any, first: int, where: str) -> tuple[Any, bool]:
    """The width of a plain block, and whether those from layer `first` on are twice as wide."""
    if not isinstance(widths, list):
        return widths, False
    width = widths[0]
    if widths != [width] * first + [2 * width] * (len(widths) - first):
        fact = f"{WIDTH} is {widths!r}, where layers from {first} on should be twice as wide as the others"
        raise UnsupportedError(where, fact, "use a model where they are")
    return width, True


def _turning(tensors: Mapping[str, GgufTensor], where: str) -> float:
    """The fraction of a head's pairs that are rotated, in layers without a window."""
    tensor = tensors.get(FREQS)
    if tensor is None:
        return 1.0
    factors = [float(one) for one in tensor.values(slice(None)).ravel()]
    turning = sum(factor == 1.0 for factor in factors)
    if any(factor < _NEVER for factor in factors[turning:]) or not turning:
        fact = f"{FREQS} has factors other than those of pairs that turn, and then of those that do not"
        raise UnsupportedError(where, fact, "use a model with such a rope")
    return turning / len(factors)

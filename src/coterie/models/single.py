"""Config of layers that are a single block: state space, attention or feed-forward (Nemotron-H, Mamba-2).

Knows nothing about graphs (single_blocks.py).
"""

from __future__ import annotations

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

PATTERN, TYPES, OWN_TYPES = "hybrid_override_pattern", "layer_types", "layers_block_type"
PLAIN = "mlp"  # the type of a layer that is a feed-forward block
_LETTERS = {"M": "mamba", "*": "attention", "-": PLAIN, "E": "moe"}


def with_types(config: Fields) -> Fields:
    """The config with layer types (from a pattern, if it has one), and with num_hidden_layers set to their number.

    Raises CheckpointError, UnsupportedError.
    """
    types, pattern = config.get(TYPES, config.get(OWN_TYPES)), config.get(PATTERN)
    if types is None and pattern is not None:
        if not isinstance(pattern, str) or any(letter not in _LETTERS for letter in pattern):
            raise config.wrong(PATTERN, f"is {pattern!r}", f"a word of the letters {' '.join(_LETTERS)}")
        types = [_LETTERS[letter] for letter in pattern]
    if types is None:
        return config
    if not isinstance(types, list):
        raise config.wrong(TYPES, f"is {types!r}", "a list of names")
    if "moe" in types:
        fact = f"layer {types.index('moe')} is of type moe, whose branches have no gates, which is not supported"
        raise UnsupportedError(config.where, fact, "use a model without such layers")
    return Fields({**config.raw, TYPES: types, "num_hidden_layers": len(types)}, config.where, config.names)


def plain_layers_of(config: Fields) -> tuple[int, ...]:
    """The layers that are just a feed-forward block."""
    return tuple(layer for layer, kind in enumerate(config.get(TYPES, [])) if kind == PLAIN)

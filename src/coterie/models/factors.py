"""Separate factors of products and channels in a config, such as Falcon-H1's.

Knows nothing about graphs, except the names of a decoder's products.
"""

from __future__ import annotations

from coterie.models.fields import Fields

_OF_SPACE, _OF_BLOCK = "ssm_multipliers", "mlp_multipliers"


def factors_of(config: Fields) -> dict[str, float]:
    """Op name of a product -> factor, without those that are 1. Raises CheckpointError."""
    one = {
        key: config.number(f"{key}_multiplier", 1.0)
        for key in ("ssm_in", "ssm_out", "attention_in", "attention_out", "key")
    }
    of_space, (gate, down) = _several(config, _OF_SPACE, 5), _several(config, _OF_BLOCK, 2)
    found = {"z": one["ssm_in"] * of_space[0], "xbc": one["ssm_in"], "dt": one["ssm_in"] * of_space[4]}
    found |= {"q": one["attention_in"], "k": one["attention_in"] * one["key"], "v": one["attention_in"]}
    found |= {"o": one["attention_out"], "scan_o": one["ssm_out"], "gate": gate, "down": down}
    return {name: factor for name, factor in found.items() if factor != 1.0}


def channel_factors_of(config: Fields) -> tuple[float, float, float]:
    """Factors of a state space's channels: of heads, write and read. Raises CheckpointError."""
    _, own, write, read, _ = _several(config, _OF_SPACE, 5)
    return own, write, read


def _several(config: Fields, key: str, count: int) -> list[float]:
    said = config.get(key, [1.0] * count)
    if not isinstance(said, list) or len(said) != count:
        raise config.wrong(key, f"is {said!r}", f"a list of {count} numbers")
    return [Fields({key: factor}, config.where).number(key) for factor in said]

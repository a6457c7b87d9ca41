"""Factors of products and channels that a config gives one by one, as Falcon-H1's do.

Knows nothing about graphs, but for the names of a decoder's products.
"""

from __future__ import annotations

from coterie.models.fields import Fields

_OF_SPACE, _OF_BLOCK = "ssm_multipliers", "mlp_multipliers"


def factors_of(config: Fields) -> dict[str, float]:
    """What products are multiplied by, by the names of their ops; those of 1 are left out. Raises CheckpointError."""
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
    """Of a state space's channels: of the heads, of what writes and of what reads. Raises CheckpointError."""
    _, own, write, read, _ = _several(config, _OF_SPACE, 5)
    return own, write, read


def _several(config: Fields, key: str, count: int) -> list[float]:
    said = config.get(key, [1.0] * count)
    if not isinstance(said, list) or len(said) != count:
        raise config.wrong(key, f"is {said!r}", f"a list of {count} numbers")
    return [Fields({key: factor}, config.where).number(key) for factor in said]

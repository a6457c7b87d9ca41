"""Keys that a family has a name of its own for: where a config has both names, that counts which transformers reads.

Knows nothing about other keys.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="the extra peers is not installed: transformers is missing")
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from coterie.models.config import _usual_keys
from coterie.models.families import FAMILIES

MADE = {name: CONFIG_MAPPING[name]() for name, family in FAMILIES.items() if family.keys and name in CONFIG_MAPPING}
ROWS = [
    (name, usual, own)
    for name, made in MADE.items()
    for usual, own in FAMILIES[name].keys.items()
    if hasattr(made, usual) or hasattr(made, own)
]


def two_values(value: Any) -> list[Any]:
    """Two others of a value's type."""
    if isinstance(value, bool):
        return [True, False]
    if isinstance(value, list):
        return [["linear_attention"], ["full_attention"]]
    return [0.25, 0.5] if isinstance(value, float) else [64, 96]


@pytest.mark.parametrize(("name", "usual", "own"), ROWS)
def test_of_two_names_that_counts_which_transformers_reads(name: str, usual: str, own: str) -> None:
    """A class that has the own name reads that, after what the usual one may have set there; others read the usual."""
    made, family = MADE[name], FAMILIES[name]
    known = own if hasattr(made, own) else usual
    more = {**dict.fromkeys(family.mandatory_keys, 1), **family.required, "hidden_size": 32}
    for values in (two := two_values(getattr(made, known)), two[::-1]):
        raw = {usual: values[0], own: values[1]} | ({"num_hidden_layers": 1} if usual == "layer_types" else {})
        raw |= {"num_attention_heads": 4} if usual == "hidden_size" else {}  # or heads would not fit in it
        raw |= {"hidden_size": 32 * values[1], "expand": 2, "head_dim": 64} if own == "num_heads" else {}  # likewise
        found = _usual_keys(more | raw, "config.json", family)
        assert found.get(usual) == getattr(type(made).from_dict(raw), known)
        assert found.names.get(usual, usual) == (own if found.get(usual) == values[1] else usual)


def test_the_own_name_alone_counts() -> None:
    for name, usual, own in ROWS:
        more = dict.fromkeys(FAMILIES[name].mandatory_keys, 1) | ({} if usual == "hidden_size" else {"hidden_size": 7})
        found = _usual_keys({**more, own: 7}, "config.json", FAMILIES[name])
        assert (found.get(usual), found.names[usual]) == (7, own)

"""The sparsity_config of config.json: the fraction of a model's linear weights that is stored.

    {"compression_config": {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask",
                            "global_sparsity": 0.875, "targets": ["Linear"], "ignore": ["lm_head"]}}}

The form is that of the compressed-tensors library, which stores the nonzero elements and a bitmask. All linears of the
layers have the same sparsity; embedding, head and norms are dense. Only modelled machines run sparse weights.
Knows nothing about graphs or bytes.
"""

from __future__ import annotations

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

KEY, SECTION, METHOD, FORMAT = "compression_config", "sparsity_config", "compressed-tensors", "sparse-bitmask"
MIN_DENSITY = 1e-4  # below this, the number is taken to be corrupt
WANTED = {"format": FORMAT, "targets": ["Linear"], "ignore": ["lm_head"]}


def density_of(config: Fields) -> float:
    """The fraction of nonzero elements in the linears of the layers; 1 without the section.

    Raises UnsupportedError for another method or form, CheckpointError for a number out of range.
    """
    outer = config.section(KEY)
    inner = outer.section(SECTION) if outer is not None else None
    if outer is None:
        return 1.0
    if inner is None or outer.get("quant_method", METHOD) != METHOD or outer.get("config_groups"):
        fact = f"{KEY} means compressed weights, which are not supported"
        raise UnsupportedError(config.where, fact, f"use a checkpoint without it, or with a {SECTION} alone")
    for key, wanted in WANTED.items():
        if inner.get(key) != wanted:
            fact = f"{SECTION}: {key} is {inner.get(key)!r}"
            raise UnsupportedError(config.where, fact, f"Coterie runs {wanted!r}")
    sparsity = inner.get("global_sparsity")
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity <= 1 - MIN_DENSITY:
        raise inner.wrong("global_sparsity", f"is {sparsity!r}", f"a number from 0 to {1 - MIN_DENSITY:g}")
    return 1.0 - sparsity

"""Scales and soft caps of a config: of embeddings, attention scores, residual additions and logits.

Knows nothing about graphs.
"""

from __future__ import annotations

from coterie.models.family import Family
from coterie.models.fields import Fields


def scales_of(config: Fields, family: Family) -> dict[str, float]:
    """A config's scales and caps, as fields of ModelConfig. Granite's keys all default to 1."""
    keys = {
        "embed_scale": "embedding_multiplier",
        "attention_scale": "attention_multiplier",
        "residual_scale": "residual_multiplier",
    }
    found = {name: config.number(key, 1.0) for name, key in keys.items() if key in family.supported_keys}
    if "logits_scaling" in family.supported_keys:
        found["logits_scale"] = 1.0 / config.number("logits_scaling", 1.0)
    if "lm_head_multiplier" in family.supported_keys:
        found["logits_scale"] = config.number("lm_head_multiplier", 1.0)
    if "scale_depth" in family.supported_keys:
        found["residual_scale"] = config.number("scale_depth") / config.count("num_hidden_layers") ** 0.5
        found["logits_scale"] = config.count("dim_model_base") / config.count("hidden_size")
    if family.scaled_embeddings or (family.scaled_embeddings_key and config.flag(family.scaled_embeddings_key)):
        found["embed_scale"] = config.count("hidden_size") ** 0.5
    if family.logits_factor:
        found["logits_scale"] = config.number("logit_scale", family.logits_factor)
    if family.attention_scalar:
        found["attention_scale"] = config.count("query_pre_attn_scalar", family.attention_scalar) ** -0.5
    found["attention_cap"] = _cap(config, family.attention_cap, "attn_logit_softcapping")
    return found | {"logits_cap": _cap(config, family.logits_cap, "final_logit_softcapping")}


def _cap(config: Fields, default: float, key: str) -> float:
    """A cap of scores or logits, 0 for none; an absent key means the family's default, null means none."""
    if config.get(key) is None:
        return 0.0 if key in config.raw else default
    return config.number(key)

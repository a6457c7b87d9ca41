"""Translates the rope of a GGUF file to keys of config.json.

For Llama 3's rule a file holds the resulting factors, a divisor per frequency, but not the parameters of the rule.
Between its bounds the rule is linear in the frequency:

    1 / factor_i = 1/F + (1 - 1/F) * s_i,     s_i = (L / (2 pi) * frequency_i - low) / (high - low)

so F is the largest factor, and the line determines two more numbers. There are three (L, low, high), but scaling all of
them changes nothing, so L is set to 8192, Llama 3's own. If that does not reproduce the factors, they are written out
one by one.
Knows nothing about tensors or other keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.packed import F32
from coterie.models.fields import Fields

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FREQS, LONG, SHORT)
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"  # DeepSeek's: a tenth of mscale_all_dim
KEYS = (
    *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_ext_factor"),
    *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)
_LENGTH, _LOW, _HIGH = 8192, 1.0, 4.0  # those of Llama 3.1 to 3.3
_AGREE = 2e-6  # relative: a few units in the last place of a float32
_DIGITS = 5


def rope_keys(keys: Fields, rotated: int, context: int, factors: Mapping[str, F32]) -> dict[str, Any]:
    """`rope_theta` and, if there is any, `rope_scaling`, from the file's keys and its tensors of factors, by name.

    `rotated`: rotated channels per head; `context`: trained length. Raises CheckpointError, UnsupportedError.
    """
    theta = keys.number("rope.freq_base", 10_000.0)
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear", 1.0) != 1.0 else "none")
    for name, found in factors.items():
        if found.shape != (rotated // 2,):
            fact = f"{name} has {found.size} factors for {rotated // 2} pairs of channels"
            raise CheckpointError(keys.where, fact, "download the file again")
        if not ((found > 0) & np.isfinite(found)).all():
            fact = f"{name} has a factor that is no positive number"
            raise CheckpointError(keys.where, fact, "download the file again")
    if FREQS in factors and kind not in ("none", "llama3"):
        raise UnsupportedError(
            keys.where, f"{FREQS} beside rope of type {kind!r} is not supported", "use a model with one"
        )
    if LONG in factors or SHORT in factors or kind == "longrope":
        return {"rope_theta": theta} | _longrope(keys, context, factors)
    if kind == "yarn":
        return {"rope_theta": theta, "rope_scaling": _yarn(keys, context)}
    if keys.number("rope.scaling.attn_factor", 1.0) != 1.0:
        fact = f"rope.scaling.attn_factor beside rope of type {kind!r} is not supported"
        raise UnsupportedError(keys.where, fact, "use a model without it")
    if FREQS in factors and (factors[FREQS] != 1).any():
        return {"rope_theta": theta, "rope_scaling": _by_factors(factors[FREQS], theta, context)}
    if kind == "linear":
        factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
        return {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "none":
        return {"rope_theta": theta}
    raise UnsupportedError(
        keys.where, f"rope of type {kind!r} is not supported", "Coterie runs linear, yarn and longrope"
    )


def _longrope(keys: Fields, context: int, factors: Mapping[str, F32]) -> dict[str, Any]:
    missing = [name for name in (LONG, SHORT) if name not in factors]
    if missing:
        raise CheckpointError(keys.where, f"tensor {missing[0]} is missing", "download the file again")
    original = keys.count("rope.scaling.original_context_length", context)
    scaling = {
        "rope_type": "longrope",
        "short_factor": _numbers(factors[SHORT]),
        "long_factor": _numbers(factors[LONG]),
    }
    factor = keys.number("rope.scaling.attn_factor", 1.0)
    ratio = context / original
    usual = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
    own = {} if abs(factor - usual) <= 1e-6 * usual else {"attention_factor": factor}
    return {"original_max_position_embeddings": original, "rope_scaling": scaling | own}


def _yarn(keys: Fields, context: int) -> dict[str, Any]:
    """YaRN: cos and sin are scaled by 0.1 ln(factor) + 1, times `attn_factor`.

    `yarn_attn_factor` is config.json's attention_factor and replaces both. So does an `attn_factor` equal to that usual
    scale: OLMo 3's first converter wrote config.json's value there, and the model was trained with it applied once.
    """
    if keys.get("rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):
        fact = f"rope.scaling.yarn_ext_factor = {keys.get('rope.scaling.yarn_ext_factor')} is not supported"
        raise UnsupportedError(keys.where, fact, "use a model where it is 1")
    factor = keys.number("rope.scaling.factor")
    more = keys.number("rope.scaling.attn_factor", 1.0)
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    is_usual = more == 1.0 or abs(more - usual) <= 1e-5 * usual
    given = {
        "attention_factor": keys.get("rope.scaling.yarn_attn_factor") or (None if is_usual else usual * more),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow"),
    }
    weight = _rounded(10 * keys.number(LOG_MULTIPLIER)) if keys.get(LOG_MULTIPLIER) else None
    given |= {"mscale": weight, "mscale_all_dim": weight}
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.count("rope.scaling.original_context_length", context),
    }
    return found | {key: value for key, value in given.items() if value is not None and value > 0}


def _by_factors(factors: F32, theta: float, context: int) -> dict[str, Any]:
    """Llama 3's rule if its parameters reproduce these factors; otherwise the factors themselves, as longrope's."""
    found = _llama3(factors, theta)
    if found:
        return found
    numbers = _numbers(factors)
    own = {"original_max_position_embeddings": context, "factor": 1.0, "attention_factor": 1.0}
    return {"rope_type": "longrope", "short_factor": numbers, "long_factor": numbers} | own


def _llama3(factors: F32, theta: float) -> dict[str, Any] | None:
    pairs = len(factors)
    plain = 1.0 / theta ** (np.arange(pairs) / pairs)
    waves = _LENGTH / (2 * math.pi) * plain
    factor = _rounded(float(factors.max()))
    if factor <= 1:
        return None
    candidates = [(_LOW, _HIGH)]
    smooth = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    between = (smooth > 1e-4) & (smooth < 1 - 1e-4)
    if between.sum() >= 2:
        slope, start = np.polyfit(waves[between], smooth[between], 1)
        if slope > 0 > start:
            low = -start / slope
            candidates.append((_rounded(low), _rounded(low + 1 / slope)))
            candidates.append((float(low), float(low + 1 / slope)))
    for low, high in candidates:
        s = np.clip((waves - low) / (high - low), 0.0, 1.0)
        if np.allclose((1 - s) / factor + s, 1 / factors.astype(np.float64), rtol=_AGREE, atol=0):
            frequencies = {"low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": _LENGTH} | frequencies
    return None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _numbers(factors: F32) -> list[float]:
    return [float(str(one)) for one in factors]

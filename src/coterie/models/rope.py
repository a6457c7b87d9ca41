"""Rotary position embedding: from the config's keys to inverse frequencies, their scale, and the context limit.

Knows nothing about graphs. Arithmetic follows Hugging Face transformers step by step in float32, as the models were
trained: at position 100,000, one unit in the last place of a frequency is a hundredth of a radian.
Sources: linear, Chen et al. 2023 (arXiv 2306.15595); yarn, Peng et al. 2023 (arXiv 2309.00071), section 3;
longrope, Ding et al. 2024 (arXiv 2402.13753); llama3, the Llama 3.1 model card's scaling rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.family import FIXED_NTK, FULL, SLIDING, Family
from coterie.models.fields import MAX_NUMBER, Fields

F32 = npt.NDArray[np.float32]
GROWTH = "llama_4_scaling_beta"  # key of the rope section
PROPORTIONAL = "proportional"


@dataclass(frozen=True, slots=True)
class Rope:
    """`inv_freq` has an entry for each rotated pair of channels; cos and sin are multiplied by `scale`.

    `max_context` is in tokens. `interleaved`: pairs are adjacent channels, not those of the two halves. Queries are
    multiplied by 1 + growth * log(1 + position // growth_step).
    """

    kind: str
    inv_freq: tuple[float, ...]
    scale: float
    max_context: int
    interleaved: bool = False
    growth: float = 0.0
    growth_step: int = 0


@dataclass(frozen=True, slots=True)
class _Settings:
    """What every kind needs: the rope section (or a default), theta, rotated channels and trained length."""

    rope: Fields
    theta: float
    rotated: int
    max_positions: int
    original_positions: int
    alpha: float = 0.0  # of a dynamic rope that is in fact static; 0 for none


def rope_from_config(config: Fields, family: Family, head_dim: int, local: bool = False) -> Rope:
    """Read `rope_scaling` or `rope_parameters`; `local`: for layers with a window that have a rope of their own.

    Raises CheckpointError, or UnsupportedError naming the kind.
    """
    rope, theta = _section(config, family, local), _theta(config, family, local)
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = family.rope_kinds.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in KINDS:
        fact = f"rope type {kind!r} is not supported"
        raise UnsupportedError(rope.where, fact, f"Coterie runs {', '.join(KINDS)}")
    max_positions = config.count("max_position_embeddings", family.max_positions)
    original = rope.count("original_max_position_embeddings", max_positions)
    settings = _Settings(
        rope,
        rope.number("rope_theta", theta),
        head_dim if kind == PROPORTIONAL else _rotated(config, rope, family, head_dim),
        max_positions,
        config.count("original_max_position_embeddings", family.original_positions or original),
        rope.number("alpha") if family.rope_alpha and rope.get("alpha") else 0.0,
    )
    if settings.theta <= 1:
        raise rope.wrong("rope_theta", f"is {settings.theta:g}", "above 1")
    found = replace(KINDS[kind](settings), interleaved=_interleaved(config, family))
    found = replace(found, **_growth(rope, family))
    if family.rope_by_window:  # max_position_embeddings already includes the scaling
        found = replace(found, max_context=min(found.max_context, max_positions))
    turning = (frequency for frequency in found.inv_freq if frequency or kind != PROPORTIONAL)
    if not all(0 < frequency < math.inf for frequency in turning):
        fact = f"{kind} rope with these numbers gives frequencies that are not above 0"
        raise CheckpointError(rope.where, fact, "check factor and rope_theta")
    return found


def _interleaved(config: Fields, family: Family) -> bool:
    usual = family.rope_interleaved
    return config.flag(family.interleaved_key, usual) if family.interleaved_key else usual


def _growth(rope: Fields, family: Family) -> dict[str, Any]:
    """Growth of queries with their position, as fields of Rope. Source: Llama 4's attention temperature tuning."""
    if not rope.get(GROWTH):
        return {}
    if not family.queries_grow:
        fact = f"{GROWTH} = {rope.get(GROWTH)!r} means queries that grow with their position, which is not supported"
        raise UnsupportedError(rope.where, f"{fact} for {family.model_type}", "use a checkpoint without it")
    return {"growth": rope.number(GROWTH), "growth_step": rope.count("original_max_position_embeddings")}


def _rotated(config: Fields, rope: Fields, family: Family, head_dim: int) -> int:
    """Number of rotated channels per head, which is even."""
    unsaid = family.rotated_fraction
    if family.rotated_key and config.get(family.rotated_key) is not None:
        unsaid = config.count(family.rotated_key) / head_dim
    part = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", unsaid))
    if part != 1.0 and not family.partial_rope:
        fact = f"partial_rotary_factor {part:g} is not supported for {family.model_type}"
        raise UnsupportedError(rope.where, fact, "use a model that rotates whole heads")
    rotated = int(head_dim * part)
    if rotated % 2 or not 0 < rotated <= head_dim:
        fact = f"is {part:g}, which is {rotated} of the {head_dim} channels of a head"
        raise rope.wrong("partial_rotary_factor", fact, "such that an even number of them, and not 0, is rotated")
    return rotated


def _periods(settings: _Settings) -> F32:
    exponents = np.arange(0, settings.rotated, 2, dtype=np.float32) / np.float32(settings.rotated)
    return np.asarray(np.float32(settings.theta) ** exponents, np.float32)


def _section(config: Fields, family: Family, local: bool) -> Fields:
    """The section that describes the rope. With `rope_by_window`, newer configs have one per layer type.

    Older configs then have a single section, for the layers without a window; the others have a plain rope.
    """
    rope = (
        config.section("rope_scaling") or config.section("rope_parameters") or Fields(family.default_rope, config.where)
    )
    nested = [key for key, value in rope.raw.items() if isinstance(value, dict)]
    if not family.rope_by_window:
        if nested:
            fact = f"rope parameters by layer type ({', '.join(nested)}) are not supported for {family.model_type}"
            raise UnsupportedError(rope.where, fact, "use a model with one rope")
        return rope
    if not nested:
        return Fields({}, config.where) if local else rope
    if unknown := [key for key in nested if key not in (FULL, SLIDING)]:
        raise UnsupportedError(
            rope.where, f"rope of layer type {unknown[0]!r} is not supported", f"name {FULL} and {SLIDING}"
        )
    return rope.section(SLIDING if local else FULL) or Fields({}, rope.where)


def _theta(config: Fields, family: Family, local: bool) -> float:
    """Theta if the rope's own section does not give it."""
    if not local:
        return config.number("rope_theta", family.rope_theta)
    default = family.local_rope_theta
    return config.number(family.local_rope_key, default) if family.local_rope_key else default


def _plain(settings: _Settings) -> F32:
    return np.asarray(np.float32(1.0) / _periods(settings), np.float32)


def _rope(kind: str, inv_freq: F32, max_context: int, scale: float = 1.0) -> Rope:
    return Rope(kind, tuple(float(f) for f in inv_freq), scale, max_context)


def _default(settings: _Settings) -> Rope:
    return _rope("default", _plain(settings), settings.max_positions)


def _factor(rope: Fields, default: float | None = None) -> float:
    """The factor by which the context is extended."""
    factor = rope.number("factor", default)
    if factor < 1:
        raise rope.wrong("factor", f"is {factor:g}", "at least 1")
    return factor


def _linear(settings: _Settings) -> Rope:
    factor = _factor(settings.rope)
    return _rope("linear", _plain(settings) / np.float32(factor), int(settings.max_positions * factor))


def _proportional(settings: _Settings) -> Rope:
    """The first pairs have the frequencies of a full rope, the others do not turn. Source: Gemma 4 in transformers."""
    part = settings.rope.number("partial_rotary_factor", 1.0)
    turning = int(part * settings.rotated // 2)
    if not 0 < turning <= settings.rotated // 2:
        fact = f"is {part:g}, which is {turning} of the {settings.rotated // 2} pairs of a head"
        raise settings.rope.wrong("partial_rotary_factor", fact, "such that some of them are rotated")
    frequencies = _plain(settings) / np.float32(_factor(settings.rope, 1.0))
    frequencies[turning:] = 0.0
    return _rope(PROPORTIONAL, frequencies, settings.max_positions)


def _dynamic(settings: _Settings) -> Rope:
    """Dynamic NTK: plain frequencies within the trained length, which is the limit here.

    Beyond it, frequencies would change for cached keys too. With an alpha, theta is enlarged once, for all lengths.
    """
    if settings.alpha:
        longer = settings.theta * settings.alpha ** (settings.rotated / max(settings.rotated - 2, 1))
        return _rope("dynamic", _plain(replace(settings, theta=longer)), settings.max_positions)
    _factor(settings.rope)
    return _rope("dynamic", _plain(settings), min(settings.max_positions, settings.original_positions))


def _fixed_ntk(settings: _Settings) -> Rope:
    """A larger theta, and all frequencies divided, at all lengths. Source: the code of Alibaba's GTE."""
    factor = _factor(settings.rope)
    if settings.rope.get("mixed_b") is not None:
        fact = "mixed_b means frequencies divided by numbers of their own, which is not supported"
        raise UnsupportedError(settings.rope.where, fact, "use a model without it")
    longer = _plain(replace(settings, theta=settings.theta * factor))
    divided = longer / np.float32(factor) ** np.float32(2 / settings.rotated)
    return _rope(FIXED_NTK, divided, settings.max_positions)


def _longrope(settings: _Settings) -> Rope:
    """LongRoPE with the short factors, limited to the trained length: beyond it, those of cached keys would change."""
    rope, original = settings.rope, settings.original_positions
    short, count = rope.get("short_factor"), settings.rotated // 2
    numbers = isinstance(short, list) and all(type(f) in (int, float) and 0 < f < MAX_NUMBER for f in short)
    if not numbers or len(short) != count:
        found = "is missing" if short is None else f"is {_brief(short)}"
        raise rope.wrong("short_factor", found, f"a list of {count} numbers above 0")
    factor = rope.number("factor", settings.max_positions / original)
    if factor > 1 and original < 2:
        raise rope.wrong("original_max_position_embeddings", f"is {original}", "at least 2")
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    inv_freq = np.float32(1.0) / (np.array(short, np.float32) * _periods(settings))
    context = min(settings.max_positions, original)
    return _rope("longrope", inv_freq, context, rope.number("attention_factor", usual))


def _brief(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)


def _llama3(settings: _Settings) -> Rope:
    rope, original = settings.rope, settings.original_positions
    factor, low, high = _factor(rope), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", f"is {high:g}", f"above low_freq_factor, {low:g}")
    plain = _plain(settings)
    wavelength = np.float32(2 * math.pi) / plain
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    blend = (np.float32(1) - smooth) * plain / np.float32(factor) + smooth * plain
    longest = np.float32(min(original / low, float(np.finfo(np.float32).max)))
    stretched = np.where(wavelength > longest, plain / np.float32(factor), blend)
    inv_freq = np.where(wavelength < np.float32(original / high), plain, stretched)
    return _rope("llama3", inv_freq, settings.max_positions)


def _yarn(settings: _Settings) -> Rope:
    rope, original, dim = settings.rope, settings.original_positions, settings.rotated
    factor = _factor(rope, max(1.0, settings.max_positions / original))
    low, high = _yarn_border(settings)
    if low == high:
        high += 0.001  # avoids a division by zero
    steps = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = np.float32(1) - np.clip(steps, 0, 1).astype(np.float32)
    periods = np.float32(settings.theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    inv_freq = np.float32(1) / (np.float32(factor) * periods) * (np.float32(1) - keep) + np.float32(1) / periods * keep
    context = max(settings.max_positions, int(original * factor))
    return _rope("yarn", inv_freq, context, _yarn_scale(rope, factor))


def _yarn_border(settings: _Settings) -> tuple[float, float]:
    """The dimensions between which yarn passes from keeping a frequency to dividing it."""
    rope, dim = settings.rope, settings.rotated

    def dimension(key: str, default: float) -> float:
        turns = rope.number(key, default)
        ratio = settings.original_positions / (turns * 2 * math.pi)
        if not 0 < ratio < math.inf:
            raise rope.wrong(key, f"is {turns:g}", "some turns of a wave over the original length, as 1 or 32")
        return dim * math.log(ratio) / (2 * math.log(settings.theta))

    low, high = dimension("beta_fast", 32.0), dimension("beta_slow", 1.0)
    if rope.flag("truncate", True):
        low, high = float(math.floor(low)), float(math.ceil(high))
    return max(low, 0.0), min(high, dim - 1.0)


def _yarn_scale(rope: Fields, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return rope.number("attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope.number("mscale")) / mscale(rope.number("mscale_all_dim"))
    return mscale(1.0)


KINDS: dict[str, Callable[[_Settings], Rope]] = {
    "default": _default,
    "linear": _linear,
    PROPORTIONAL: _proportional,
    "dynamic": _dynamic,
    FIXED_NTK: _fixed_ntk,
    "longrope": _longrope,
    "llama3": _llama3,
    "yarn": _yarn,
}

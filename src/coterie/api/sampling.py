"""How the tokens of one query are sampled: its own settings, completed by its expert's defaults.

Knows nothing about where defaults come from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coterie.api.types import Query
from coterie.core.errors import UsageError
from coterie.core.sampling import SETTINGS, PartialSampling
from coterie.engine.request import ChoiceParams, SamplingParams
from coterie.models.model import Model

CHECKPOINT, GREEDY = "checkpoint", "greedy"  # whose defaults: each expert's checkpoint's, or greedy sampling
_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")


def settled(query: Query, defaults: PartialSampling) -> tuple[SamplingParams, ChoiceParams]:
    """A query's complete sampling settings, and its choice with all penalties."""
    if isinstance(query.sampling, SamplingParams):
        return query.sampling, query.choice
    penalties: dict[str, Any] = {name: getattr(query.choice, name) for name in _PENALTIES}
    penalties = {name: value for name, value in penalties.items() if value != SETTINGS[name].neutral}
    found = query.sampling.over(PartialSampling(**penalties)).over(
        defaults if defaults.explicit else query.fallback_sampling
    )
    sampling = SamplingParams(
        found.value("temperature"),
        int(found.value("top_k")),
        found.value("top_p"),
        found.value("min_p"),
        found.seed or 0,
    )
    penalties = {name: found.value(name) for name in _PENALTIES}
    return sampling, replace(query.choice, **penalties)


def defaults_of(model: Model) -> dict[str, float]:
    """An expert's defaults: its temperature, and each setting that has an effect."""
    given = model.advised.sampling.explicit
    temperature = given.get("temperature", SETTINGS["temperature"].neutral)
    others = {name: value for name, value in given.items() if value != SETTINGS[name].neutral}
    if temperature == 0:  # greedy: limits on the candidates have no effect
        others = {name: value for name, value in others.items() if name in _PENALTIES}
    return {"temperature": temperature, **others}


def with_defaults(model: Model, whose: str) -> Model:
    """The model with the defaults of its checkpoint and composition file; or, for `greedy`, with temperature 0 only.

    Raises UsageError for another word.
    """
    if whose not in (CHECKPOINT, GREEDY):
        raise UsageError("--sampling", f"{whose!r} says no defaults", f"use {CHECKPOINT} or {GREEDY}")
    if whose == CHECKPOINT:
        return model
    return replace(model, advised=replace(model.advised, sampling=PartialSampling(temperature=0.0)))

"""The zoo: the published shapes of well-known models, by name, and their graphs; no weights.

Knows nothing about machines. A composition may name a model of the zoo wherever it takes a config.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from coterie.core.dtypes import DType
from coterie.core.errors import NotFoundError, UsageError
from coterie.core.paths import shipped_names
from coterie.graph.ir import Graph
from coterie.models.config import ModelConfig
from coterie.models.families.llava import MODEL_TYPE, llava_graph, llava_text_graph
from coterie.models.model import Model, declared_dtype, synthetic_model
from coterie.models.monarch import fft_conv_graph, monarch_example
from coterie.models.registry import decoder_graph

PREFILL, DECODE = "prefill", "decode"
SOURCE = "_source"  # source of the numbers; the only key of a zoo file that is not Hugging Face's


# Computations that are not language models: no tokens, no state, no sampling.
COMPUTATIONS: Mapping[str, Callable[[], Graph]] = {
    "flash-fft-conv-1m": fft_conv_graph,
    "monarch-example": monarch_example,
}


def zoo_names() -> tuple[str, ...]:
    """Names of everything that `zoo_graph` can build, sorted."""
    return tuple(sorted((*model_names(), *COMPUTATIONS)))


def model_names() -> tuple[str, ...]:
    """Names of the models whose configs ship with Coterie, sorted."""
    return shipped_names("coterie.models", "configs", ".json")


def zoo_config(name: str) -> dict[str, Any]:
    """The config.json of a model, without the keys that change no shape. Raises NotFoundError."""
    raw = _read(name)
    del raw[SOURCE]
    return raw


def zoo_graph(name: str, phase: str = PREFILL) -> Graph:
    """The graph of one step, with weights and activations of the type that the config declares.

    The phase matters for models with vision: only prefill runs the vision tower.
    Raises NotFoundError for the name, UsageError for the phase.
    """
    if phase not in (PREFILL, DECODE):
        raise UsageError(name, f"phase {phase!r} is unknown", f"use {PREFILL} or {DECODE}")
    if name in COMPUTATIONS:
        return COMPUTATIONS[name]()
    raw = zoo_config(name)
    dtype = declared_dtype(raw, name)
    weights: defaultdict[str, DType] = defaultdict(lambda: dtype)
    if raw["model_type"] == MODEL_TYPE:
        return (llava_graph if phase == PREFILL else llava_text_graph)(raw, name, weights, dtype)
    return decoder_graph(ModelConfig.from_hf(raw, name), weights, dtype)


def zoo_model(name: str, expert: str = "") -> Model:
    """A model of the zoo as an expert without bytes, named `expert`. Raises NotFoundError."""
    raw = zoo_config(name)
    return synthetic_model(raw, expert or name, declared_dtype(raw, name))


def _read(name: str) -> dict[str, Any]:
    if name in COMPUTATIONS:
        raise NotFoundError(name, "it is a computation without a config", f"use one of {', '.join(model_names())}")
    if name not in model_names():
        raise NotFoundError(name, "there is no such model", f"use one of {', '.join(zoo_names())}, or a config.json")
    text = (files("coterie.models") / "configs" / f"{name}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found

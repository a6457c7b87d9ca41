"""GET /api/tags and /api/ps, POST /api/show: the models, those in memory, and the details of one.

Knows nothing about requests for answers. Source: Ollama's API reference, "List models", "List running models" and "Show
model details".
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any

from coterie.api import Message, Query, Serving
from coterie.api.sampling import defaults_of
from coterie.api.texts import Text
from coterie.core.dtypes import DType
from coterie.core.lru_cache import LruCache
from coterie.models.model import Model
from coterie.models.packing import NAMES
from coterie.server.models import context_lengths
from coterie.server.ollama.names import expert_of, listed, timestamp

# The API version implemented here: the first with logprobs, its latest feature. Clients parse it.
VERSION = "0.12.11"
NEVER = "9999-12-31T23:59:59Z"  # models never expire; they are evicted when another needs the room
_TOOL = {"type": "function", "function": {"name": "x"}}
_ASKED = (Message("user", "x"),)
_ABOUT: LruCache[tuple[int, str]] = LruCache(4096)  # by architecture key: number of weights, prevailing type
_NAMES = {"repetition_penalty": "repeat_penalty"}


def all_models(coterie: Serving) -> dict[str, Any]:
    """All models that can be asked, by each name: the composition, if it can be, and experts that do not only score."""
    composition = coterie.composition
    rows = [_row(coterie, composition.name, None)] if _routes(coterie) else []
    for expert in composition.experts:
        if not coterie.texts[expert.name].scoring:
            rows += [_row(coterie, name, expert.name) for name in (expert.name, *expert.aliases)]
    return {"models": rows}


def loaded(coterie: Serving) -> dict[str, Any]:
    """The models that are fully in memory."""
    lengths, is_gpu = context_lengths(coterie), coterie.members[0].parts.device.spec.run_tier == "hbm"
    rows = []
    for found in coterie.status().experts:
        if found.state == "resident" and found.name in lengths:
            row = _row(coterie, found.name, found.name)
            del row["modified_at"]
            about = {"expires_at": NEVER, "size_vram": found.size_bytes if is_gpu else 0}
            rows.append({**row, **about, "context_length": lengths[found.name]})
    return {"models": rows}


def shown_model(coterie: Serving, name: str) -> dict[str, Any]:
    """The details of one; its template is in Jinja. Raises NotFoundError."""
    expert, lengths = expert_of(name, coterie.composition), context_lengths(coterie)
    if expert is None:
        shown: dict[str, Any] = {
            "parameters": "",
            "template": "",
            "model_info": {"general.architecture": "coterie", "coterie.context_length": max(lengths.values())},
            "capabilities": _each_once(able for text in coterie.texts.values() for able in capabilities(text)),
        }
    else:
        text, model = coterie.texts[expert], coterie.models[expert]
        template = text.template
        lines = [f"{_NAMES.get(setting, setting):<30} {value:g}" for setting, value in defaults_of(model).items()]
        shown = {
            "parameters": "\n".join(lines),
            "template": "" if template is None else template.source,
            "model_info": _model_info(model, lengths[expert]),
            "capabilities": capabilities(text),
        }
    row = _row(coterie, name, expert)
    return {**shown, "details": row["details"], "modified_at": row["modified_at"]}


def capabilities(text: Text) -> list[str]:
    """What an expert can be asked for, in Ollama's terms."""
    if not text.samples_tokens:
        return [] if text.scoring else ["embedding"]
    asked = {
        "completion": True,
        "tools": not text.unfit(Query(_ASKED, tools=(_TOOL,))),
        "insert": not text.unfit(Query(_ASKED, raw=True, suffix="x")),
        "thinking": text.thinks(Query(_ASKED)),
    }
    return [able for able, holds in asked.items() if holds]


def _routes(coterie: Serving) -> bool:
    """Whether the composition's name can be asked, if no expert has it."""
    composition = coterie.composition
    if composition.named(composition.name) is not None:
        return False
    return composition.router is not None or len(composition.experts) == 1


def _row(coterie: Serving, name: str, expert: str | None) -> dict[str, Any]:
    names = coterie.composition.names if expert is None else (expert,)
    models = [coterie.models[one] for one in names]
    written_s, size_bytes = max(model.written_s for model in models), sum(model.layout.size_bytes for model in models)
    about = {"name": listed(name), "model": listed(name), "modified_at": timestamp(written_s)}
    whole = {"size": size_bytes, "digest": _digest(models)}
    return {**about, **whole, "details": _details(coterie, models[0] if expert is not None else None)}


def _digest(models: Iterable[Model]) -> str:
    """Differs when files differ in path, size or time of writing."""
    facts = [(str(one.path), one.key, one.layout.size_bytes, one.written_s) for one in models]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _details(coterie: Serving, model: Model | None) -> dict[str, Any]:
    if model is None:
        families = _each_once(coterie.models[name].config.family for name in coterie.composition.names)
        return {"parent_model": "", "format": "", "family": "", "families": families, "parameter_size": "",
                "quantization_level": ""}  # fmt: skip
    (count, kind), base = _about(model), "" if model.base is None else model.base.name
    family = model.config.family
    return {
        "parent_model": base,
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _in_words(count),
        "quantization_level": kind,
    }


def _about(model: Model) -> tuple[int, str]:
    """The number of a model's weights, including those of an adapter's base, and their prevailing type."""

    def counted() -> tuple[int, str]:
        sizes = Counter[DType]()
        for value in model.graph.weights:
            sizes[value.dtype] += prod(size for size in value.shape if isinstance(size, int))
        (prevailing, _), *_ = sizes.most_common(1)
        return sizes.total(), NAMES.get(prevailing, prevailing.value)

    return _ABOUT.get(model.key, counted)


def _model_info(model: Model, context_length: int) -> dict[str, Any]:
    config = model.config
    sizes = {
        "context_length": context_length,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "vocab_size": config.vocab_size,
    }
    general = {"general.architecture": config.family, "general.parameter_count": _about(model)[0]}
    return {**general, **{f"{config.family}.{name}": size for name, size in sizes.items()}}


def _in_words(count: int) -> str:
    """A number of weights in Ollama's format."""
    for letter, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f}{letter}"
    return str(count)


def _each_once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))

"""The config of a language model that is part of a larger model, as if it had been saved alone.

    {"model_type": "gemma3", "text_config": {...}, "vision_config": {...}}  ->  {"model_type": "gemma3_text", ...}
    {"model_type": "bert", "position_embedding_type": "alibi", ...}         ->  {"model_type": "jina_bert", ...}
    {"model_type": "new", "architectures": ["NewModel"], ...}               ->  {"model_type": "gte", ...}

Knows nothing about tensors (text_model.py) or what the text model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields
from coterie.models.refused import refuse_features

TEXT, VISION, AUDIO, TIED = "text_config", "vision_config", "audio_config", "tie_word_embeddings"


@dataclass(frozen=True, slots=True)
class Nested:
    """A row: class of the whole model, default family of its text model, and defaults of the text config's keys.

    The defaults are those of the whole model's config class in Hugging Face transformers.
    """

    causal_class: str
    text: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unused_parts: tuple[str, ...] = (VISION,)  # configs of the parts that the text model does not need


_GEMMA4 = {
    **{"vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_key_value_heads": 4},
    **{"num_hidden_layers": 30, "num_attention_heads": 8, "head_dim": 256, TIED: True},
}
NESTED: Mapping[str, Nested] = {
    "gemma3": Nested(
        "Gemma3ForConditionalGeneration",
        "gemma3_text",
        {
            **{"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216},
            **{"num_hidden_layers": 26, "num_attention_heads": 8, TIED: True},
        },
    ),
    "gemma4": Nested("Gemma4ForConditionalGeneration", "gemma4_text", _GEMMA4, (VISION, AUDIO)),
    "gemma4_unified": Nested("Gemma4UnifiedForConditionalGeneration", "gemma4_unified_text", _GEMMA4, (VISION, AUDIO)),
    "mistral3": Nested("Mistral3ForConditionalGeneration", "mistral"),
    "qwen3_5": Nested(
        "Qwen3_5ForConditionalGeneration",
        "qwen3_5_text",
        {
            **{"vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288},
            **{"num_hidden_layers": 32, "num_attention_heads": 16},
        },
    ),
    "qwen3_5_moe": Nested(
        "Qwen3_5MoeForConditionalGeneration",
        "qwen3_5_moe_text",
        {
            **{"vocab_size": 248_320, "hidden_size": 2048, "moe_intermediate_size": 512},
            **{"num_hidden_layers": 40, "num_attention_heads": 16},
        },
    ),
}
_OF_THE_WHOLE = (
    "dtype",
    "torch_dtype",
    "eos_token_id",
    "quantization_config",
    TIED,
)  # keys of the whole model that apply to the text model


def part_of(raw: Mapping[str, Any]) -> str:
    """The model_type of a larger model's config; empty for a text model's."""
    kind = raw.get("model_type")
    return kind if isinstance(kind, str) and kind in NESTED else ""


def text_config(raw: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The config of the text model alone. A text model's is returned as is, except that some encoders are renamed.

    Raises CheckpointError if there is no text config, UnsupportedError for unsupported classes or features.
    """
    kind = part_of(raw)
    if not kind:
        return _by_our_name(raw)
    nested, whole = NESTED[kind], Fields(raw, where)
    if (classes := whole.get("architectures")) not in (None, [], [nested.causal_class]):
        fact = f"architecture {kind!r} with architectures {classes} is not supported"
        raise UnsupportedError(where, fact, f"Coterie runs the text model of {nested.causal_class}")
    refuse_features(Fields({k: v for k, v in raw.items() if k not in (TEXT, *nested.unused_parts)}, where))
    text = whole.section(TEXT)
    if text is None:
        raise whole.wrong(TEXT, "is missing", "the config of the text model")
    kept = {key: raw[key] for key in _OF_THE_WHOLE if raw.get(key) is not None}
    own = {key: value for key, value in text.raw.items() if key != "architectures"}
    own["model_type"] = text.get("model_type", nested.text)
    return {**nested.defaults, **kept, **own, **({TIED: kept[TIED]} if TIED in kept else {})}


def _by_our_name(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rename encoders whose model_type is another family's (Jina's BERT) or an older one (Alibaba's GTE)."""
    if raw.get("model_type") == "bert" and raw.get("position_embedding_type") == "alibi":
        return {**raw, "model_type": "jina_bert"}
    if raw.get("model_type") != "new":
        return raw
    classes = raw.get("architectures")
    named = [str(name).replace("New", "Gte", 1) for name in classes] if isinstance(classes, list) else classes
    return {**raw, "model_type": "gte", "architectures": named}

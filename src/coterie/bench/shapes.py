"""The shapes that can be measured, each the config.json of a model, by name or by path.

Knows nothing about weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coterie.checkpoint.files import read_object
from coterie.checkpoint.folder import CONFIG
from coterie.composition.composition import PRESETS
from coterie.core.errors import UsageError
from coterie.core.paths import user_path
from coterie.models.zoo import zoo_config

COMMON: Mapping[str, Any] = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
LLAMA: Mapping[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **COMMON}

# Source: config.json of HuggingFaceTB/SmolLM-135M.
_135M = {
    **LLAMA,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}

# Source: config.json of TinyLlama/TinyLlama-1.1B-Chat-v1.0.
_1B = {
    **LLAMA,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}

# Made up: a small OLMoE, of whose 469 million weights a token reads 117 million.
_MOE = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    **COMMON,
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 32000,
}


def _demo() -> dict[str, Any]:
    """The config of a demo expert; all of them have the same shape."""
    first = min((PRESETS / "demo" / "experts").glob(f"*/{CONFIG}"))
    return read_object(first)


SHAPES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "demo": _demo,
    "135m": lambda: dict(_135M),
    "1b": lambda: dict(_1B),
    "7b": lambda: zoo_config("llama-2-7b"),
    "moe": lambda: dict(_MOE),
}


def shape_config(shape: str) -> dict[str, Any]:
    """The config of a named shape or of a config.json file. Raises UsageError listing the shapes."""
    if shape in SHAPES:
        return SHAPES[shape]()
    file = user_path(shape, "--shape")
    if not file.is_file():
        fact = f"{shape!r} is neither a shape nor a config.json file"
        raise UsageError("--shape", fact, f"use one of {', '.join(SHAPES)}, or the path of a config.json")
    return read_object(file)


def with_context(config: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The config with a context of at least `tokens`; random weights are not trained for any context length anyway."""
    return {**config, "max_position_embeddings": max(tokens, int(config.get("max_position_embeddings", 0)))}

"""Configs of a small Llama and of families' defaults, with changes.

Knows nothing about what is read of them.
"""

from coterie.models.config import ModelConfig

RAW = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def config(drop=(), **changes):
    raw = {key: value for key, value in {**RAW, **changes}.items() if key not in drop}
    return ModelConfig.from_hf(raw, "config.json")


def family(model_type, drop=(), **changes):
    return config(drop=("architectures", *drop), model_type=model_type, **changes)

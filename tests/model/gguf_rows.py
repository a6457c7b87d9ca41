"""Tiny models as GGUF files can say them: what a file does not say is what llama.cpp takes for granted."""

import tokenizers
from tests.model import tiny

FULL, SLIDING = "full_attention", "sliding_attention"
# What a file does not say is what llama.cpp takes for granted: the scale of queries by head, windows by pattern.
OWN = {
    "gemma2-usual": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3-usual": (
        "gemma3",
        {"query_pre_attn_scalar": 16, "num_hidden_layers": 6, "layer_types": [SLIDING] * 5 + [FULL]},
    ),
    "smollm3-usual": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "phi3-long": ("phi3-partial", {"max_position_embeddings": 1024, "original_max_position_embeddings": 512}),
    "olmo3-windows": ("olmo3", {"layer_types": [SLIDING] * 3}),
    "exaone4-usual": ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 3}),
    "qwen2-moe": ("qwen2-moe", {"mlp_only_layers": []}),
    "olmoe-usual": ("olmoe", {"num_key_value_heads": 4}),
    "lfm2-moe-usual": ("lfm2-moe", {"routed_scaling_factor": 1.0}),
    "gpt-oss-usual": ("gpt-oss", {"swiglu_limit": 7.0, "hidden_size": 64, "intermediate_size": 96}),
    "deepseek-v2-groups": ("deepseek-v2-groups", {"attention_bias": False, "mlp_bias": False}),
}
OWN["gemma-bias-tanh"] = ("gemma", {})
ROPES = {
    "olmo3": {"rope_theta": 700.0},
    "olmo3-windows": {"rope_theta": 700.0},
    "phi3-long": {"original_max_position_embeddings": 512},
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 500.0}
OWN_ROPES = {
    "mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "not rounded": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
}
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # rows of whole blocks


def save(folder, row, rope, dtype, **sizes):
    """Save a tiny model of a row, or of one of OWN, in a folder."""
    base, changes = OWN.get(row, (row, {}))
    class_name, own = tiny.FAMILY_ROWS[base]
    usual = tiny.ROPES.get(rope)
    tiny.FAMILY_ROWS["here"] = (class_name, {**own, **changes, **sizes})
    tiny.ROPES[rope] = {**(usual or OWN_ROPES[rope]), **ROPES.get(row, {})}
    try:
        return tiny.save(tiny.make("here", rope), folder, dtype)
    finally:
        del tiny.FAMILY_ROWS["here"], tiny.ROPES[rope]
        if usual:
            tiny.ROPES[rope] = usual


def save_tokenizer(path):
    """A tokenizer.json of two tokens."""
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path))
    return path

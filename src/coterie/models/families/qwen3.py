"""Qwen3 (dense): per-head q and k norms; an explicit head size; a sliding window in some layers.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Window

QWEN3 = Family(
    model_type="qwen3",
    causal_class="Qwen3ForCausalLM",
    max_positions=32_768,
    num_kv_heads=32,
    head_dim=128,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    window=Window.BY_LAYER,
)

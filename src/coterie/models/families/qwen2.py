"""Qwen2 and Qwen2.5: biases on q, k and v; a sliding window in some layers.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Window

QWEN2 = Family(
    model_type="qwen2",
    causal_class="Qwen2ForCausalLM",
    max_positions=32_768,
    num_kv_heads=32,
    qkv_bias=Bias.ALWAYS,
    window=Window.BY_LAYER,
)

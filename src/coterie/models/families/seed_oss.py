"""Seed-OSS: Llama with an explicit head size, and biases on q, k and v.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family

SEED_OSS = Family(
    model_type="seed_oss",
    causal_class="SeedOssForCausalLM",
    max_positions=524_288,
    num_kv_heads=8,
    head_dim=128,
    qkv_bias=Bias.ALWAYS,
    required={"attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
)

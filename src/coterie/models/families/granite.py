"""Granite 3 (dense): Llama with scales of embeddings, attention scores, residual additions and logits.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family

GRANITE = Family(
    model_type="granite",
    causal_class="GraniteForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    supported_keys=("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
)

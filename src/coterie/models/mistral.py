"""Mistral: Llama with a sliding window on every layer.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Family, Window

MISTRAL = Family(
    model_type="mistral",
    causal_class="MistralForCausalLM",
    max_positions=131_072,
    num_kv_heads=8,
    window=Window.EVERY_LAYER,
)

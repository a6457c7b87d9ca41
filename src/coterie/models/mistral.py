"""Mistral: Llama with a sliding window on every layer; Ministral may have one on some.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.family import Family, Window

MISTRAL = Family(
    model_type="mistral",
    causal_class="MistralForCausalLM",
    max_positions=131_072,
    num_kv_heads=8,
    window=Window.EVERY_LAYER,
)
MINISTRAL = replace(MISTRAL, model_type="ministral", causal_class="MinistralForCausalLM", window=Window.BY_TYPES)

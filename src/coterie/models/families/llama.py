"""Llama, versions 1 to 3.x: plain attention, with biases only where the config asks for them.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family

LLAMA = Family(
    model_type="llama",
    causal_class="LlamaForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
)

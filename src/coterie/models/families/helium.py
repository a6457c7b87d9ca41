"""Helium: Llama with rope over adjacent channels, and no bias on the output projection.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family

HELIUM = Family(
    model_type="helium",
    causal_class="HeliumForCausalLM",
    max_positions=4096,
    num_kv_heads=20,
    head_dim=128,
    qkv_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    norm_eps=1e-8,
    rope_theta=100_000.0,
    rope_interleaved=True,
    supported_keys=("rope_interleaved",),
    required={"rope_interleaved": True},
)

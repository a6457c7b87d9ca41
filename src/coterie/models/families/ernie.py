"""ERNIE 4.5 (dense): Llama with rope over adjacent channels; one config key for all biases.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family

ERNIE4_5 = Family(
    model_type="ernie4_5",
    causal_class="Ernie4_5ForCausalLM",
    max_positions=131_072,
    num_kv_heads=2,
    head_dim=128,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    norm_eps=1e-5,
    tied_embeddings=True,
    rope_theta=500_000.0,
    rope_interleaved=True,
    supported_keys=("rope_interleaved",),
    required={"rope_interleaved": True},
    keys={"attention_bias": "use_bias", "mlp_bias": "use_bias"},
)

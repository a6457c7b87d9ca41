"""SmolLM3: Llama in which some layers, by default every fourth, have no rope.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Window

SMOLLM3 = Family(
    model_type="smollm3",
    causal_class="SmolLM3ForCausalLM",
    max_positions=32_768,
    num_kv_heads=4,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    window=Window.WITHOUT_ROPE,
    window_tokens=None,
    tied_embeddings=True,
    rope_theta=2_000_000.0,
    no_rope_interval=4,
    supported_keys=("no_rope_layers", "no_rope_layer_interval"),
)

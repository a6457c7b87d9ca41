"""Starcoder2: layer norms, biases everywhere, an ungated feed-forward block with gelu, a sliding window.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, FeedForward, Names, Norm, Window

STARCODER2 = Family(
    model_type="starcoder2",
    causal_class="Starcoder2ForCausalLM",
    max_positions=4096,
    num_kv_heads=2,
    qkv_bias=Bias.ALWAYS,
    o_bias=Bias.ALWAYS,
    mlp_bias=Bias.ALWAYS,
    norm=Norm.LAYER,
    norm_eps=1e-5,
    feed_forward=FeedForward.GELU_TANH,
    feed_forwards={"gelu_pytorch_tanh": FeedForward.GELU_TANH, "gelu": FeedForward.GELU},
    activation_key="hidden_act",
    window=Window.EVERY_LAYER,
    window_tokens=None,
    tied_embeddings=True,
    names=Names(up="mlp.c_fc", down="mlp.c_proj"),
    keys={"rms_norm_eps": "norm_epsilon"},
    required={"use_bias": True},
    supported_keys=("hidden_act",),
)

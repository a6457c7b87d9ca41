"""Arcee: Llama with an ungated feed-forward block and squared ReLU.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, FeedForward

ARCEE = Family(
    model_type="arcee",
    causal_class="ArceeForCausalLM",
    max_positions=4096,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    norm_eps=1e-5,
    feed_forward=FeedForward.RELU_SQUARED,
    feed_forwards={"relu2": FeedForward.RELU_SQUARED},
    activation_key="hidden_act",
    supported_keys=("hidden_act",),
)

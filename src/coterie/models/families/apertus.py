"""Apertus: Llama with per-head q and k norms and an ungated feed-forward block with a trained activation (xIELU).

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, FeedForward, Names

APERTUS = Family(
    model_type="apertus",
    causal_class="ApertusForCausalLM",
    max_positions=65_536,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    norm_eps=1e-5,
    rope_theta=12_000_000.0,
    default_rope={
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 8192,
    },
    feed_forward=FeedForward.XIELU,
    feed_forwards={"xielu": FeedForward.XIELU},
    activation_key="hidden_act",
    supported_keys=("hidden_act",),
    names=Names(attention_norm="attention_layernorm", feed_forward_norm="feedforward_layernorm"),
)

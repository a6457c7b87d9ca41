"""Phi-1.5 and Phi-2: attention and an ungated feed-forward block in parallel after one layer norm, biases everywhere.

Rope is partial, and the logits have a bias too.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, FeedForward, Names, Norm

PHI = Family(
    model_type="phi",
    causal_class="PhiForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.ALWAYS,
    o_bias=Bias.ALWAYS,
    mlp_bias=Bias.ALWAYS,
    head_bias=Bias.ALWAYS,
    norm=Norm.LAYER,
    norm_eps=1e-5,
    feed_forward=FeedForward.GELU_TANH,
    feed_forwards={
        "gelu_new": FeedForward.GELU_TANH,
        "gelu_pytorch_tanh": FeedForward.GELU_TANH,
        "gelu": FeedForward.GELU,
    },
    activation_key="hidden_act",
    parallel_norms=1,
    partial_rope=True,
    rotated_fraction=0.5,
    names=Names(
        shared_norm="input_layernorm",
        o="self_attn.dense",
        up="mlp.fc1",
        down="mlp.fc2",
        norm="model.final_layernorm",
    ),
    keys={"rms_norm_eps": "layer_norm_eps"},
    supported_keys=("hidden_act",),
)

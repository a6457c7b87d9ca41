"""Falcon, the architecture of 40B and 180B: attention and feed-forward in parallel, each after a layer norm.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, FeedForward, Names, Norm

FALCON = Family(
    model_type="falcon",
    causal_class="FalconForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    norm=Norm.LAYER,
    norm_eps=1e-5,
    feed_forward=FeedForward.GELU,
    parallel_norms=2,
    tied_embeddings=True,
    modelled_only=True,
    names=Names(
        embed="transformer.word_embeddings.weight",
        layer="transformer.h.{}.",
        attention_norm="ln_attn",
        feed_forward_norm="ln_mlp",
        shared_norm="input_layernorm",
        qkv="self_attention.query_key_value",
        o="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        norm="transformer.ln_f",
    ),
    keys={
        "num_key_value_heads": "num_kv_heads",
        "intermediate_size": "ffn_hidden_size",
        "rms_norm_eps": "layer_norm_epsilon",
        "attention_bias": "bias",
        "mlp_bias": "bias",
    },
    required={"new_decoder_architecture": True, "parallel_attn": True},
)

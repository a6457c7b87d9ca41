"""BLOOM: layer norms with bias, also after the embedding; ALiBi instead of rope; one projection for q, k and v.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, FeedForward, Names, Norm

BLOOM = Family(
    model_type="bloom",
    causal_class="BloomForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.ALWAYS,
    o_bias=Bias.ALWAYS,
    mlp_bias=Bias.ALWAYS,
    norm=Norm.LAYER,
    norm_eps=1e-5,
    feed_forward=FeedForward.GELU_TANH,
    alibi=True,
    tied_embeddings=True,
    modelled_only=True,
    names=Names(
        embed="transformer.word_embeddings.weight",
        embed_norm="transformer.word_embeddings_layernorm",
        layer="transformer.h.{}.",
        qkv="self_attention.query_key_value",
        o="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        norm="transformer.ln_f",
    ),
    keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embed",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    usual_first=("num_hidden_layers", "num_attention_heads"),
    required={"apply_residual_connection_post_layernorm": False},
)

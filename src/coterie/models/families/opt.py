"""OPT, built like GPT-3: layer norms with bias before each block, learned positions, an ungated feed-forward block.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, FeedForward, Names, Norm

OPT = Family(
    model_type="opt",
    causal_class="OPTForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.ALWAYS,
    o_bias=Bias.ALWAYS,
    mlp_bias=Bias.ALWAYS,
    norm=Norm.LAYER,
    norm_eps=1e-5,
    feed_forward=FeedForward.RELU,
    feed_forwards={"relu": FeedForward.RELU, "gelu": FeedForward.GELU},
    position_offset=2,
    tied_embeddings=True,
    modelled_only=True,
    names=Names(
        embed="model.decoder.embed_tokens.weight",
        positions="model.decoder.embed_positions.weight",
        layer="model.decoder.layers.{}.",
        attention_norm="self_attn_layer_norm",
        feed_forward_norm="final_layer_norm",
        o="self_attn.out_proj",
        up="fc1",
        down="fc2",
        norm="model.decoder.final_layer_norm",
    ),
    keys={"intermediate_size": "ffn_dim"},
    required={
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    same_as_hidden=("word_embed_proj_dim",),
)

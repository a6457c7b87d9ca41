"""Llama, versions 1 to 3.x: plain attention, biases only if the config asks for them. EuroBERT: the same as an encoder.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.encoder import EncoderKeys
from coterie.models.family import Bias, Family, Names

LLAMA = Family(
    model_type="llama",
    causal_class="LlamaForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
)

EUROBERT = replace(
    LLAMA,
    model_type="eurobert",
    causal_class="EuroBertModel",
    max_positions=8192,
    norm_eps=1e-5,
    encoder=EncoderKeys(
        model="model.",
        unread=("lm_head.", "dense.", "classifier."),
        required={"hidden_act": "silu"},
        post_norm=False,
        own_code=True,
    ),
    names=Names(embed="embed_tokens.weight", layer="layers.{}.", norm="norm"),
)

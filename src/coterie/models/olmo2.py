"""OLMo 2: norms stand behind attention and feed-forward, none before; those of q and k reach over all heads.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Names

OLMO2_NAMES = Names(
    attention_norm="",
    attention_out_norm="post_attention_layernorm",
    feed_forward_norm="",
    feed_forward_out_norm="post_feedforward_layernorm",
)
OLMO2 = Family(
    model_type="olmo2",
    causal_class="Olmo2ForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    heads_normed_together=True,
    norm_eps=1e-5,
    names=OLMO2_NAMES,
)

"""OLMo 2 and 3: norms after attention and feed-forward, none before; q and k norms over all heads.

OLMo 3 has a window in all layers except every fourth, and scales the rope of that one only.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.family import Bias, Family, Names, Window

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
    qk_norm_all_heads=True,
    norm_eps=1e-5,
    names=OLMO2_NAMES,
)
OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    causal_class="Olmo3ForCausalLM",
    window=Window.BY_PATTERN,
    window_pattern=4,
    rope_by_window=True,
    rope_theta=500_000.0,
    local_rope_theta=500_000.0,
    local_rope_key="rope_theta",
)

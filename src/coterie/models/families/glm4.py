"""GLM-4: half of each head is rotated, in pairs of adjacent channels; files join gate and up.

    glm    norms before the blocks
    glm4   norms before and after them (GLM-4 0414)

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.family import NAMES, Bias, Family, Names

_JOINED = {"mlp.gate_up_proj": (NAMES.gate, NAMES.up)}
GLM = Family(
    model_type="glm",
    causal_class="GlmForCausalLM",
    max_positions=131_072,
    num_kv_heads=2,
    head_dim=128,
    qkv_bias=Bias.UNLESS_OFF,
    norm_eps=1.5625e-7,
    partial_rope=True,
    rotated_fraction=0.5,
    rope_interleaved=True,
    supported_keys=("rope_interleaved",),
    required={"rope_interleaved": True},
    names=Names(joined=_JOINED),
)
GLM4 = replace(
    GLM,
    model_type="glm4",
    causal_class="Glm4ForCausalLM",
    names=Names(
        attention_out_norm="post_self_attn_layernorm",
        feed_forward_norm="post_attention_layernorm",
        feed_forward_out_norm="post_mlp_layernorm",
        joined=_JOINED,
    ),
)

"""HunYuan (dense): Llama with per-head q and k norms after rope; theta may be enlarged by a fixed alpha.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Names

HUNYUAN = Family(
    model_type="hunyuan_v1_dense",
    causal_class="HunYuanDenseV1ForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    qk_norm_after_rope=True,
    norm_eps=1e-5,
    rope_alpha=True,
    supported_keys=("use_qk_norm",),
    required={"use_qk_norm": True, "use_cla": False, "mlp_bias": False},
    names=Names(q_norm="self_attn.query_layernorm", k_norm="self_attn.key_layernorm"),
)

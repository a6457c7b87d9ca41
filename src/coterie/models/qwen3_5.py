"""Qwen3.5 (dense, text): three of four layers are gated delta nets, the fourth attends behind a gate.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Names

QWEN3_5 = Family(
    model_type="qwen3_5_text",
    causal_class="Qwen3_5ForCausalLM",
    max_positions=32_768,
    num_kv_heads=4,
    head_dim=256,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    norm_offset=1.0,
    partial_rope=True,
    rotated_part=0.25,
    delta_nets=True,
    gated_attention=True,
    required={"attn_output_gate": True},
    names=Names(unread=("mtp.",)),
)

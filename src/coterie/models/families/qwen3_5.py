"""Qwen3.5 (text): three of four layers are gated delta nets, the fourth is gated attention; some models have branches.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, SharedKeys
from coterie.models.choice import ChoiceKeys
from coterie.models.families.qwen2_moe import QWEN2_MOE_NAMES
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
    rotated_fraction=0.25,
    delta_nets=True,
    gated_attention=True,
    required={"attn_output_gate": True},
    names=Names(unread=("mtp.",)),
)
QWEN3_5_MOE = replace(
    QWEN3_5,
    model_type="qwen3_5_moe_text",
    causal_class="Qwen3_5MoeForCausalLM",
    num_kv_heads=2,
    inner_key="moe_intermediate_size",  # unused: no layer has a plain block
    supported_keys=("shared_expert_intermediate_size",),
    branches=BranchKeys(
        256,
        8,
        width_key="moe_intermediate_size",
        width=512,
        choice=ChoiceKeys(normalises=True),
        shared=SharedKeys("shared_expert_intermediate_size", default=512),
        names=QWEN2_MOE_NAMES,
    ),
)

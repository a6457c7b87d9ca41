"""Qwen3-MoE: Qwen3 with many, narrow branches; some layers may have a plain block.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, Plain
from coterie.models.families.qwen3 import QWEN3

QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    causal_class="Qwen3MoeForCausalLM",
    num_kv_heads=4,
    head_dim=None,
    keys={"num_experts": "num_local_experts"},
    required={"use_sliding_window": False},
    branches=BranchKeys(128, 8, width_key="moe_intermediate_size", width=768, plain=Plain.BY_STEP),
)

"""Qwen2-MoE: Qwen2 with branches, and a shared branch weighed by a sigmoid gate.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, BranchNames, Plain, SharedKeys
from coterie.models.families.qwen2 import QWEN2
from coterie.models.family import Bias

_SHARED = "mlp.shared_expert."
QWEN2_MOE_NAMES = BranchNames(
    shared=(f"{_SHARED}gate_proj", f"{_SHARED}up_proj", f"{_SHARED}down_proj"),
    shared_chooser="mlp.shared_expert_gate",
)

QWEN2_MOE = replace(
    QWEN2,
    model_type="qwen2_moe",
    causal_class="Qwen2MoeForCausalLM",
    num_kv_heads=16,
    qkv_bias=Bias.UNLESS_OFF,
    supported_keys=("shared_expert_intermediate_size",),
    keys={"num_experts": "num_local_experts", "attention_bias": "qkv_bias"},
    usual_first=("num_experts",),
    required={"use_sliding_window": False},
    branches=BranchKeys(
        60,
        4,
        width_key="moe_intermediate_size",
        width=1408,
        plain=Plain.BY_STEP,
        shared=SharedKeys("shared_expert_intermediate_size", default=5632),
        names=QWEN2_MOE_NAMES,
    ),
)

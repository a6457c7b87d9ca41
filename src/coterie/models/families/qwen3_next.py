"""Qwen3-Next: Qwen3.5 with branches; its delta nets have two input projections, grouped by key head.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, Plain, SharedKeys
from coterie.models.choice import ChoiceKeys
from coterie.models.families.qwen2_moe import QWEN2_MOE_NAMES
from coterie.models.families.qwen3_5 import QWEN3_5

QWEN3_NEXT = replace(
    QWEN3_5,
    model_type="qwen3_next",
    causal_class="Qwen3NextForCausalLM",
    num_kv_heads=2,
    nets_by_key_heads=True,
    required={},
    supported_keys=("shared_expert_intermediate_size",),
    branches=BranchKeys(
        512,
        10,
        width_key="moe_intermediate_size",
        width=512,
        choice=ChoiceKeys(normalises_unsaid=True),
        plain=Plain.BY_STEP,
        shared=SharedKeys("shared_expert_intermediate_size", default=512),
        names=QWEN2_MOE_NAMES,
    ),
)

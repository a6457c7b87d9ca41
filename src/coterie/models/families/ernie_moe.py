"""ERNIE 4.5 MoE: ERNIE 4.5 with branches in some layers, ranked by a biased softmax, and a shared branch.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, BranchNames, Plain, SharedKeys
from coterie.models.choice import ChoiceKeys
from coterie.models.families.ernie import ERNIE4_5
from coterie.models.family import Bias

_BIAS = "moe_statics.e_score_correction_bias"

ERNIE4_5_MOE = replace(
    ERNIE4_5,
    model_type="ernie4_5_moe",
    causal_class="Ernie4_5_MoeForCausalLM",
    num_kv_heads=4,
    head_dim=None,
    head_bias=Bias.BY_CONFIG,
    keys={
        **ERNIE4_5.keys,
        "head_bias": "use_bias",
        "num_experts": "moe_num_experts",
        "num_experts_per_tok": "moe_k",
    },
    usual_first=("num_experts", "num_experts_per_tok"),
    branches=BranchKeys(
        64,
        6,
        width_key="moe_intermediate_size",
        width=1536,
        choice=ChoiceKeys(normalises=True, biased=True, min_sum=1e-12, min_sum_key="moe_norm_min"),
        plain=Plain.OUTSIDE,
        shared=SharedKeys(count_key="moe_num_shared_experts", default=2),
        names=BranchNames(bias=f"mlp.{_BIAS}", aliases=((f"mlp.{_BIAS}", f"mlp.gate.{_BIAS}"),)),
    ),
)

"""MiniMax M2: q and k norms over all heads, partial rope; branches ranked by a biased sigmoid.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys
from coterie.models.choice import ChoiceKeys
from coterie.models.families.mixtral import MIXTRAL_NAMES
from coterie.models.family import Family

_BIAS = "e_score_correction_bias"

MINIMAX_M2 = Family(
    model_type="minimax_m2",
    causal_class="MiniMaxM2ForCausalLM",
    max_positions=196_608,
    num_kv_heads=8,
    head_dim=128,
    qk_norm=True,
    qk_norm_all_heads=True,
    rope_theta=5_000_000.0,
    partial_rope=True,
    rotated_key="rotary_dim",
    supported_keys=("use_qk_norm", "scoring_func"),
    required={"use_qk_norm": True, "use_routing_bias": True},
    keys={"num_experts": "num_local_experts"},
    usual_first=("num_experts",),
    branches=BranchKeys(
        256,
        8,
        width=1536,
        choice=ChoiceKeys(normalises=True, sigmoid=True, biased=True),
        names=replace(
            MIXTRAL_NAMES,
            bias=f"block_sparse_moe.{_BIAS}",
            aliases=(*MIXTRAL_NAMES.aliases, (f"block_sparse_moe.{_BIAS}", f"mlp.{_BIAS}")),
        ),
    ),
)

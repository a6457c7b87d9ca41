"""GLM-4.5 MoE: half of each head is rotated; after some plain layers, branches ranked by a biased sigmoid.

There is also a shared branch. Released files hold an extra layer for multi-token prediction, which is not run.
Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, Plain, SharedKeys
from coterie.models.choice import BIASED_SIGMOID, GROUPED_RUNS
from coterie.models.family import Bias, Family

GLM4_MOE_BRANCHES = BranchKeys(
    128,
    8,
    width_key="moe_intermediate_size",
    width=1408,
    choice=replace(BIASED_SIGMOID, normalises_unsaid=True),
    plain=Plain.FIRST,
    shared=SharedKeys(count_key="n_shared_experts", default=1),
)
GLM4_MOE = Family(
    model_type="glm4_moe",
    causal_class="Glm4MoeForCausalLM",
    max_positions=131_072,
    num_kv_heads=8,
    qkv_bias=Bias.BY_CONFIG,
    qk_norm_key="use_qk_norm",
    norm_eps=1e-5,
    partial_rope=True,
    rotated_fraction=0.5,
    extra_layers_key="num_nextn_predict_layers",
    supported_keys=("n_routed_experts", "n_shared_experts", *GROUPED_RUNS),
    keys={"num_experts": "n_routed_experts"},
    branches=GLM4_MOE_BRANCHES,
)

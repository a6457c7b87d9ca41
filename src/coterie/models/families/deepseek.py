"""DeepSeek V2 and V3, and families like them: latent attention, branches after the first layers.

V2 ranks branches by a softmax, in some models within groups; V3 (and Moonlight) by a biased sigmoid.
Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, Plain, SharedKeys
from coterie.models.choice import BIASED_SIGMOID, FACTOR, GROUP_COUNT, GROUPED_RUNS, METHOD, ChoiceKeys
from coterie.models.family import Bias, Family
from coterie.models.latent import LATENT_RUNS, LatentKeys

V3_BRANCHES = BranchKeys(
    256,
    8,
    width_key="moe_intermediate_size",
    width=2048,
    choice=replace(BIASED_SIGMOID, normalises_unsaid=True, scale_unsaid=2.5),
    plain=Plain.FIRST,
    first=3,
    shared=SharedKeys(count_key="n_shared_experts", default=1),
)
DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    causal_class="DeepseekV3ForCausalLM",
    max_positions=4096,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    latent=LatentKeys(),
    rope_interleaved=True,
    interleaved_key="rope_interleave",
    extra_layers_key="num_nextn_predict_layers",
    supported_keys=(*LATENT_RUNS, "n_routed_experts", "n_shared_experts", *GROUPED_RUNS),
    keys={"num_experts": "n_routed_experts"},
    mandatory_keys=("n_group", "topk_group"),  # if absent, the class assumes 8 and 4, whatever the branches
    branches=V3_BRANCHES,
)
DEEPSEEK_V2 = replace(
    DEEPSEEK_V3,
    model_type="deepseek_v2",
    causal_class="DeepseekV2ForCausalLM",
    max_positions=2048,
    mlp_bias=Bias.BY_CONFIG,
    interleaved_key="",
    extra_layers_key="",
    usual_first=("num_experts",),
    mandatory_keys=(),
    # Scores are by softmax.
    supported_keys=(*LATENT_RUNS, "n_routed_experts", "n_shared_experts", FACTOR, GROUP_COUNT, METHOD),
    required={"norm_topk_prob": False},
    branches=replace(
        V3_BRANCHES,
        count=64,
        taken=None,
        width=1407,
        choice=ChoiceKeys(normalises=False, scales=True, group_best=1, groups_by_method=True),
        first=0,
        shared=SharedKeys(count_key="n_shared_experts", default=2),
    ),
)
GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    model_type="glm4_moe_lite",
    causal_class="Glm4MoeLiteForCausalLM",
    max_positions=202_752,
    norm_eps=1e-5,
    latent=LatentKeys(query_rank=768, plain=192, values=256),
    mandatory_keys=(),
    branches=replace(
        V3_BRANCHES,
        count=64,
        taken=4,
        width=1536,
        choice=replace(V3_BRANCHES.choice, scale_unsaid=1.8),
        plain=Plain.BY_TYPES,
        first=1,
    ),
)
YOUTU = Family(
    model_type="youtu",
    causal_class="YoutuForCausalLM",
    max_positions=131_072,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    latent=LatentKeys(),
    rope_interleaved=True,
    interleaved_key="rope_interleave",
    tied_embeddings=True,
    supported_keys=LATENT_RUNS,
)

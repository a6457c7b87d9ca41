"""HunYuan MoE: HunYuan with branches, each as wide as the plain block would be, and a shared branch.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, BranchNames, SharedKeys
from coterie.models.choice import ChoiceKeys
from coterie.models.families.hunyuan import HUNYUAN

HUNYUAN_MOE = replace(
    HUNYUAN,
    model_type="hunyuan_v1_moe",
    causal_class="HunYuanMoEV1ForCausalLM",
    keys={"num_experts_per_tok": "moe_topk"},
    usual_first=("num_experts_per_tok",),
    branches=BranchKeys(
        1,
        1,
        choice=ChoiceKeys(normalises=True),
        shared=SharedKeys("intermediate_size"),
        names=BranchNames(
            chooser="mlp.gate.wg",
            shared=("mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj", "mlp.shared_mlp.down_proj"),
        ),
    ),
)

"""Mixtral: Mistral with few, wide branches; their weights are a softmax over the taken ones only.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, BranchNames
from coterie.models.choice import ChoiceKeys
from coterie.models.families.mistral import MISTRAL

MIXTRAL_NAMES = BranchNames(
    chooser="block_sparse_moe.gate",
    branch="block_sparse_moe.experts.{}.",
    gate="w1",
    up="w3",
    down="w2",
    stacked=(("mlp.experts.gate_up_proj", ("w1", "w3")), ("mlp.experts.down_proj", ("w2",))),
    aliases=(("block_sparse_moe.gate.weight", "mlp.gate.weight"),),
)
MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    causal_class="MixtralForCausalLM",
    window_tokens=None,
    norm_eps=1e-5,
    rope_theta=1_000_000.0,
    keys={"num_experts": "num_local_experts"},
    usual_first=("num_experts",),
    branches=BranchKeys(8, 2, choice=ChoiceKeys(normalises=True), names=MIXTRAL_NAMES),
)

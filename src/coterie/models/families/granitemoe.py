"""GraniteMoE: Granite with branches, those of a layer stacked in one tensor.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, BranchNames
from coterie.models.choice import ChoiceKeys
from coterie.models.families.granite import GRANITE
from coterie.models.family import Bias

_STORED, _PLACE = "block_sparse_moe.", "block_sparse_moe.experts."
_UP, _DOWN = ("gate_proj", "up_proj"), ("down_proj",)

GRANITE_MOE_KEYS = BranchKeys(
    8,
    2,
    choice=ChoiceKeys(normalises=True),
    names=BranchNames(
        chooser=f"{_STORED}router.layer",
        branch=f"{_PLACE}{{}}.",
        stacked=(
            (f"{_STORED}input_linear.weight", _UP),
            (f"{_STORED}output_linear.weight", _DOWN),
            (f"{_PLACE}gate_up_proj", _UP),
            (f"{_PLACE}down_proj", _DOWN),
        ),
        aliases=((f"{_STORED}router.layer.weight", f"{_STORED}router.weight"),),
    ),
)
GRANITE_MOE = replace(
    GRANITE,
    model_type="granitemoe",
    causal_class="GraniteMoeForCausalLM",
    mlp_bias=Bias.NEVER,
    keys={"num_experts": "num_local_experts"},
    branches=GRANITE_MOE_KEYS,
)

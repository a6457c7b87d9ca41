"""Granite 4: GraniteMoE with a shared branch, and attention or a state space (Mamba-2) by layer; rope may be off.

In models without branches, the tensors of the shared branch are the plain block.
Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import SharedKeys
from coterie.models.families.granite import GRANITE
from coterie.models.families.granitemoe import GRANITE_MOE_KEYS
from coterie.models.family import Bias, Names
from coterie.models.state_space import ScanKeys

_SHARED = ("shared_mlp.gate_proj", "shared_mlp.up_proj", "shared_mlp.output_linear")
_SCAN = ScanKeys()

GRANITE4 = replace(
    GRANITE,
    model_type="granitemoehybrid",
    causal_class="GraniteMoeHybridForCausalLM",
    mlp_bias=Bias.NEVER,
    inner_key="shared_intermediate_size",
    rope_key="position_embedding_type",
    mandatory_keys=("shared_intermediate_size",),
    keys={"layer_types": "layers_block_type", "num_experts": "num_local_experts"},
    state_spaces=_SCAN,
    branches=replace(
        GRANITE_MOE_KEYS,
        may_be_zero=True,
        shared=SharedKeys("shared_intermediate_size", default=1024),
        names=replace(GRANITE_MOE_KEYS.names, shared=_SHARED),
    ),
    names=Names(
        gate=_SHARED[0],
        up=_SHARED[1],
        down=_SHARED[2],
        joined={"shared_mlp.input_linear": _SHARED[:2], **_SCAN.names.parts},
    ),
)

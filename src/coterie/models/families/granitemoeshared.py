"""GraniteMoE with a shared branch, whose gate and up projections are joined in files.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import SharedKeys
from coterie.models.families.granitemoe import GRANITE_MOE, GRANITE_MOE_KEYS
from coterie.models.family import Names

_UP = ("shared_mlp.gate_proj", "shared_mlp.up_proj")

GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    model_type="granitemoeshared",
    causal_class="GraniteMoeSharedForCausalLM",
    names=Names(joined={"shared_mlp.input_linear": _UP}),
    branches=replace(
        GRANITE_MOE_KEYS,
        shared=SharedKeys("shared_intermediate_size", default=0),
        names=replace(GRANITE_MOE_KEYS.names, shared=(*_UP, "shared_mlp.output_linear")),
    ),
)

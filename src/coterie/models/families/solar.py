"""Solar Open: GLM-4.5 MoE without q and k norms, with full rope, and with branches in all layers.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import Plain
from coterie.models.families.glm4_moe import GLM4_MOE, GLM4_MOE_BRANCHES

SOLAR_OPEN = replace(
    GLM4_MOE,
    model_type="solar_open",
    causal_class="SolarOpenForCausalLM",
    head_dim=128,
    qk_norm_key="",
    partial_rope=False,
    rotated_fraction=1.0,
    rope_theta=1_000_000.0,
    extra_layers_key="",
    inner_key="moe_intermediate_size",  # unused: no layer has a plain block
    branches=replace(GLM4_MOE_BRANCHES, width=1280, plain=Plain.NEVER),
)

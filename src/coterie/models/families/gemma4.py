"""Gemma 4 (text): layers without a window have larger heads, values are normed, each layer's output is scaled.

    E2B, E4B     each layer has its own input per token; the last layers read keys and values of earlier ones
    12B, 31B     layers without a window have no value projection
    26B-A4B      branches in parallel with the plain block

Knows nothing about how a decoder is built (layered_blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, BranchNames
from coterie.models.choice import ChoiceKeys
from coterie.models.families.gemma import GEMMA3
from coterie.models.family import FULL, SLIDING, Bias

GEMMA4 = replace(
    GEMMA3,
    model_type="gemma4_text",
    causal_class="Gemma4ForCausalLM",
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    norm_offset=0.0,
    window_tokens=512,
    pattern_key="",
    bidirectional_key="",  # there it applies to images, which are not supported
    attention_scalar=1,  # scores are not scaled
    partial_rope=True,
    local_rope_key="",
    default_rope={
        FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    },
    per_layer_heads=True,
    layer_inputs=256,
    keys={"num_experts_per_tok": "top_k_experts"},
    branches=BranchKeys(
        None,
        None,
        width_key="moe_intermediate_size",
        flag="enable_moe_block",
        choice=ChoiceKeys(normalises=True, by_width=True, factors=True),
        names=BranchNames(
            chooser="router.proj",
            branch="experts.{}.",
            factors="router.per_expert_scale",
            stacked=(("experts.gate_up_proj", ("gate_proj", "up_proj")), ("experts.down_proj", ("down_proj",))),
        ),
    ),
    supported_keys=(
        *("hidden_act", "hidden_activation", "final_logit_softcapping", "num_kv_shared_layers"),
        "use_bidirectional_attention",
    ),
)
GEMMA4_UNIFIED = replace(
    GEMMA4,
    model_type="gemma4_unified_text",
    causal_class="Gemma4UnifiedForCausalLM",
    max_positions=262_144,
    window_tokens=1024,
    layer_inputs=0,
    branches=None,
)

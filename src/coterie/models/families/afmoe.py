"""Arcee's Trinity: norms before and after both blocks, attention gated by a projection of its own, branches.

Three of four layers have a window; the fourth has no rope. Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.branches import BranchKeys, BranchNames, Plain, SharedKeys
from coterie.models.choice import FACTOR, ChoiceKeys
from coterie.models.family import Bias, Family, Names, Window

AFMOE = Family(
    model_type="afmoe",
    causal_class="AfmoeForCausalLM",
    max_positions=16_384,
    head_dim=128,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    norm_eps=1e-5,
    window=Window.BY_PATTERN,
    window_tokens=1024,
    window_pattern=4,
    pattern_key="global_attn_every_n_layers",
    full_layers_rotate=False,
    scaled_embeddings_key="mup_enabled",
    supported_keys=(FACTOR, "scoring_func", "score_func", "num_shared_experts"),
    keys={FACTOR: "route_scale", "scoring_func": "score_func", "first_k_dense_replace": "num_dense_layers"},
    branches=BranchKeys(
        64,
        6,
        width_key="moe_intermediate_size",
        width=1408,
        choice=ChoiceKeys(normalises=True, sigmoid=True, biased=True, scales=True, added_sum=1e-20),
        plain=Plain.FIRST,
        shared=SharedKeys(count_key="num_shared_experts", default=2),
        names=BranchNames(chooser="mlp.router.gate", bias="mlp.expert_bias"),
    ),
    names=Names(
        attention_out_norm="post_attention_layernorm",
        feed_forward_norm="pre_mlp_layernorm",
        feed_forward_out_norm="post_mlp_layernorm",
        attention_gate="self_attn.gate_proj",
    ),
)

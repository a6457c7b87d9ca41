"""Nemotron-H: each layer is a state space (Mamba-2), attention without rope, or a plain feed-forward block.

Step sizes of a state space are bounded by the config's `time_step_limit`, by default not at all: transformers bounds
them from below by `time_step_min` in prefill, but not in decode.
Knows nothing about how a decoder is built (single_blocks.py).
"""

from dataclasses import replace

from coterie.models.families.mamba2 import BACKBONE, KEYS, NAMES
from coterie.models.family import Bias, Family, FeedForward, Names
from coterie.models.single import PLAIN
from coterie.models.state_space import Where

NEMOTRON_H = Family(
    model_type="nemotron_h",
    causal_class="NemotronHForCausalLM",
    max_positions=4096,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    mlp_bias=Bias.BY_CONFIG,
    feed_forward=FeedForward.RELU_SQUARED,
    feed_forwards={"relu2": FeedForward.RELU_SQUARED},
    activation_key="mlp_hidden_act",
    rope_key="position_embedding_type",  # no config has this key: no layer has rope
    state_spaces=replace(
        KEYS,
        where=Where.BY_TYPES,
        other_types=(PLAIN,),
        activation="mamba_hidden_act",
        heads=("mamba_num_heads", 128),
        dim=("mamba_head_dim", 64),
        state=("ssm_state_size", 128),
    ),
    single_blocks=True,
    # Keys for layers with branches, which are refused by type; configs without such layers have the keys too.
    supported_keys=(
        *("n_routed_experts", "moe_intermediate_size", "n_shared_experts", "routed_scaling_factor", "n_group"),
    ),
    required={"attention_bias": False},  # transformers creates none, whatever the config says
    keys={"rms_norm_eps": "layer_norm_epsilon", "layer_types": "layers_block_type"},
    usual_first=("layer_types",),
    names=Names(
        attention_norm="norm",
        q="mixer.q_proj",
        k="mixer.k_proj",
        v="mixer.v_proj",
        o="mixer.o_proj",
        up="mixer.up_proj",
        down="mixer.down_proj",
        norm="model.norm_f",
        joined=NAMES.parts,
        stored=BACKBONE,
        unread=("mtp.",),
    ),
)

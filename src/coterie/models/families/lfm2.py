"""LFM2: most layers are a short convolution between two gates, the others are attention; some models have branches.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.branches import BranchKeys, BranchNames, Plain
from coterie.models.choice import ChoiceKeys
from coterie.models.family import Family, Names
from coterie.models.short_conv import CONV_NAMES

LFM2 = Family(
    model_type="lfm2",
    causal_class="Lfm2ForCausalLM",
    max_positions=128_000,
    num_kv_heads=8,
    qk_norm=True,
    norm_eps=1e-5,
    rope_theta=1_000_000.0,
    tied_embeddings=True,
    short_convs=True,
    inner_in_blocks=True,
    keys={"rms_norm_eps": "norm_eps", "tie_word_embeddings": "tie_embedding"},
    required={"conv_bias": False},
    names=Names(
        attention_norm="operator_norm",
        feed_forward_norm="ffn_norm",
        q_norm="self_attn.q_layernorm",
        k_norm="self_attn.k_layernorm",
        o="self_attn.out_proj",
        gate="feed_forward.w1",
        up="feed_forward.w3",
        down="feed_forward.w2",
        norm="model.embedding_norm",
        joined={CONV_NAMES.joined: (CONV_NAMES.before, CONV_NAMES.after, CONV_NAMES.x)},
    ),
)
LFM2_MOE = replace(
    LFM2,
    model_type="lfm2_moe",
    causal_class="Lfm2MoeForCausalLM",
    inner_in_blocks=False,
    keys={**LFM2.keys, "first_k_dense_replace": "num_dense_layers"},
    required={**LFM2.required, "use_expert_bias": True},
    supported_keys=("routed_scaling_factor",),
    branches=BranchKeys(
        32,
        4,
        width_key="moe_intermediate_size",
        width=1792,
        choice=ChoiceKeys(normalises_unsaid=True, sigmoid=True, biased=True, scales=True, added_sum=1e-6),
        plain=Plain.FIRST,
        first=2,
        names=BranchNames(
            chooser="feed_forward.gate",
            branch="feed_forward.experts.{}.",
            gate="w1",
            up="w3",
            down="w2",
            bias="feed_forward.expert_bias",
            stacked=(),
        ),
    ),
)

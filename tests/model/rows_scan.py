"""Rows of the tiny models whose layers have a selective state space (Mamba-2), as those of tiny.py.

Knows nothing about other families.
"""

MAMBA, FULL = "linear_attention", "full_attention"
GRANITE = {
    **{"embedding_multiplier": 3.5, "attention_multiplier": 0.21, "residual_multiplier": 0.6, "logits_scaling": 3.0},
    **{"shared_intermediate_size": 52, "num_local_experts": 0, "mamba_d_state": 12},
}
SCAN_ROWS = {
    "granite4-h": (
        "GraniteMoeHybrid",
        {
            **{**GRANITE, "num_hidden_layers": 4, "layer_types": [MAMBA, MAMBA, FULL, MAMBA], "mamba_n_heads": 4},
        },
    ),
    "granite4-h-groups": (
        "GraniteMoeHybrid",
        {
            **{
                **GRANITE,
                "layer_types": [MAMBA, FULL, MAMBA],
                "mamba_n_heads": 8,
                "mamba_n_groups": 2,
                "mamba_d_conv": 2,
            },
            **{"mamba_conv_bias": False, "mamba_proj_bias": True, "tie_word_embeddings": True},
        },
    ),
}
SCAN_ROWS |= {
    "bamba": (
        "Bamba",
        {
            **{"num_hidden_layers": 4, "attn_layer_indices": [1, 3], "mamba_n_heads": 4, "mamba_d_state": 12},
            **{"mamba_n_groups": 2, "partial_rotary_factor": 0.5, "pad_token_id": 0},
        },
    ),
}
FALCON = {
    **{"mamba_d_ssm": 60, "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 10, "head_dim": 16},
    **{"embedding_multiplier": 3.1, "lm_head_multiplier": 0.4, "mlp_multipliers": [0.7, 1.3], "key_multiplier": 0.6},
    **{"attention_out_multiplier": 0.8, "attention_in_multiplier": 1.2, "ssm_out_multiplier": 0.9, "pad_token_id": 0},
    **{"ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.7], "ssm_in_multiplier": 1.1},
}
SCAN_ROWS |= {
    "falcon-h1": ("FalconH1", FALCON),
    "falcon-h1-norm": (
        "FalconH1",
        {**FALCON, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "ssm_multipliers": None},
    ),
    "falcon-h1-norm-first": (
        "FalconH1",
        {**FALCON, "mamba_rms_norm": True, "mamba_n_groups": 1, "mamba_d_ssm": None, "tie_word_embeddings": True},
    ),
}
NEMOTRON = {
    **{"mamba_num_heads": 6, "mamba_head_dim": 10, "ssm_state_size": 12, "n_groups": 3, "head_dim": 14},
    **{"conv_kernel": 4, "pad_token_id": 0},
}
SCAN_ROWS |= {
    "nemotron-h": ("NemotronH", {**NEMOTRON, "layers_block_type": [MAMBA, "mlp", FULL, "mlp", MAMBA]}),
    "nemotron-h-biases": (
        "NemotronH",
        {
            **{**NEMOTRON, "hybrid_override_pattern": "*-MM", "n_groups": 1, "use_bias": True, "mlp_bias": True},
            **{"use_conv_bias": False},
        },
    ),
    "mamba2": (
        "Mamba2",
        {
            **{"num_heads": 6, "head_dim": 16, "state_size": 12, "n_groups": 2, "pad_token_id": 0},
            **{"layer_norm_epsilon": 1e-5, "residual_in_fp32": False},
        },
    ),
}
# With branches too, which has tests of its own: a choice that rounding turns over has no bound.
SCAN_MOE = {
    "granite4-h-moe": (
        "GraniteMoeHybrid",
        {
            **{**GRANITE, "layer_types": [MAMBA, FULL, MAMBA], "mamba_n_heads": 6, "mamba_n_groups": 3},
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "position_embedding_type": "rope"},
        },
    ),
}

"""Rows of tiny models with tests of their own: latent attention, nets, short convolutions, layers that differ.

Each is a config class, and what differs from tiny.BASE. Knows nothing about how models are made of them.
"""

FULL, SLIDING = "full_attention", "sliding_attention"
# Latent attention, with branches and without.
LATENT_ROWS = {
    "deepseek-v2": (
        "DeepseekV2",
        {
            **{"q_lora_rank": None, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8},
            **{"v_head_dim": 10, "num_key_value_heads": 4, "n_routed_experts": 6, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 21, "n_shared_experts": 2, "first_k_dense_replace": 1},
        },
    ),
    "deepseek-v2-groups": (
        "DeepseekV2",
        {
            **{"q_lora_rank": 14, "kv_lora_rank": 36, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 15},
            **{"num_key_value_heads": 4, "n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 20},
            **{"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
            **{"attention_bias": True, "mlp_bias": True, "n_shared_experts": 1},
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **{"q_lora_rank": 18, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12},
            **{"num_key_value_heads": 4, "n_routed_experts": 12, "num_experts_per_tok": 4, "moe_intermediate_size": 21},
            **{"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1},
        },
    ),
    "moonlight": (
        "DeepseekV3",
        {
            **{"q_lora_rank": None, "kv_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
            **{"num_attention_heads": 1, "num_key_value_heads": 1, "n_routed_experts": 5, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 20, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2},
            **{"n_shared_experts": 2, "attention_bias": True, "rope_interleave": False, "tie_word_embeddings": True},
        },
    ),
    "glm4-moe-lite": (
        "Glm4MoeLite",
        {
            **{"q_lora_rank": 20, "kv_lora_rank": 28, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20},
            **{"num_attention_heads": 5, "num_key_value_heads": 5, "n_routed_experts": 6, "num_experts_per_tok": 3},
            **{"moe_intermediate_size": 21, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        },
    ),
    "minicpm3": (
        "MiniCPM3",
        {
            **{"q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6},
            **{"num_key_value_heads": 4, "scale_emb": 3.5, "scale_depth": 1.4, "dim_model_base": 20},
        },
    ),
    "youtu": (
        "Youtu",
        {
            **{"q_lora_rank": 22, "kv_lora_rank": 44, "qk_nope_head_dim": 10, "qk_rope_head_dim": 12, "v_head_dim": 6},
            **{"num_attention_heads": 20, "num_key_value_heads": 20},
        },
    ),
}
# Layers that are gated delta nets.
NET = "linear_attention"
DELTA_ROWS = {
    "qwen3.5": (
        "Qwen3_5",
        {
            **{"num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 12, "partial_rotary_factor": 0.25},
        },
    ),
    "qwen3.5-first": (
        "Qwen3_5",
        {
            **{"layer_types": [FULL, NET, FULL], "head_dim": 20, "linear_num_key_heads": 1},
            **{"linear_num_value_heads": 3, "linear_key_head_dim": 20, "linear_value_head_dim": 40},
            **{"linear_conv_kernel_dim": 2, "attention_bias": True, "tie_word_embeddings": True},
            "partial_rotary_factor": 0.5,
        },
    ),
}
# Both at once, which has tests of its own: a choice that rounding turns over has no bound.
DELTA_MOE = {
    "qwen3.5-moe": (
        "Qwen3_5Moe",
        {
            **DELTA_ROWS["qwen3.5"][1],
            **{"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 21},
            "shared_expert_intermediate_size": 36,
        },
    ),
}
DELTA_MOE |= {
    "qwen3-next": (
        "Qwen3Next",
        {
            **DELTA_ROWS["qwen3.5"][1],
            **{"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 21, "mlp_only_layers": [1]},
            "shared_expert_intermediate_size": 36,
        },
    ),
    "qwen3-next-first": (
        "Qwen3Next",
        {
            **DELTA_ROWS["qwen3.5-first"][1],
            **{"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 20, "norm_topk_prob": False},
            **{"shared_expert_intermediate_size": 12, "decoder_sparse_step": 2, "num_hidden_layers": 3},
        },
    ),
}
# Layers that are short convolutions.
CONV = "conv"
CONV_ROWS = {
    "lfm2": (
        "Lfm2",
        {
            **{"num_hidden_layers": 4, "layer_types": [CONV, CONV, FULL, CONV], "block_multiple_of": 8},
            **{"block_ffn_dim_multiplier": 1.3, "pad_token_id": 0},
        },
    ),
    "lfm2-first": (
        "Lfm2",
        {
            **{"full_attn_idxs": [0, 2], "conv_L_cache": 4, "block_auto_adjust_ff_dim": False, "pad_token_id": 0},
            **{"num_key_value_heads": 1, "tie_word_embeddings": False},
        },
    ),
}
CONV_MOE = {
    "lfm2-moe": (
        "Lfm2Moe",
        {
            **{"num_hidden_layers": 4, "layer_types": [CONV, FULL, CONV, FULL], "num_dense_layers": 1},
            **{"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 21, "pad_token_id": 0},
            "routed_scaling_factor": 1.5,
        },
    ),
}
DELTA_ROWS |= CONV_ROWS
DELTA_MOE |= CONV_MOE
# Layers of different heads, which have a rope each. The last of small ones is shared by none, of large ones by one.
GEMMA4 = {
    **{"hidden_size": 48, "head_dim": 16, "global_head_dim": 24, "sliding_window": 6, "num_hidden_layers": 6},
    **{"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL], "hidden_size_per_layer_input": 10},
    **{"vocab_size_per_layer_input": 257, "final_logit_softcapping": 2.0},
}
GEMMA4_ROWS = {
    "gemma4": ("Gemma4", {**GEMMA4, "num_kv_shared_layers": 3, "use_double_wide_mlp": True}),
    "gemma4-values": (
        "Gemma4",
        {
            **{**GEMMA4, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
            **{"layer_types": [SLIDING, SLIDING, FULL], "num_hidden_layers": 3, "attention_bias": True},
        },
    ),
    "gemma4-wide": ("Gemma4", {**GEMMA4, "num_key_value_heads": 1, "global_head_dim": 36, "num_kv_shared_layers": 2}),
    "gemma4-unified": (
        "Gemma4Unified",
        {
            **{"head_dim": 20, "global_head_dim": 40, "sliding_window": 6, "num_hidden_layers": 4},
            **{"layer_types": [SLIDING, FULL, SLIDING, FULL], "attention_k_eq_v": True},
        },
    ),
}
GEMMA4_MOE = {
    "gemma4-moe": (
        "Gemma4",
        {
            **{**GEMMA4, "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 6},
            **{"top_k_experts": 2, "moe_intermediate_size": 21, "attention_k_eq_v": True},
            **{"num_global_key_value_heads": 1, "num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL]},
        },
    ),
}

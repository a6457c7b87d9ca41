"""Rows of tiny models whose layers have branches: a config class, and what differs from tiny.BASE.

Knows nothing about how models are made of them.
"""

BRANCH_ROWS = {
    "qwen3-moe": (
        "Qwen3Moe",
        {
            **{"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 21, "norm_topk_prob": True},
            "head_dim": 16,
        },
    ),
    "qwen3-moe-mixed": (
        "Qwen3Moe",
        {
            **{"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "num_hidden_layers": 4},
            **{"decoder_sparse_step": 2, "mlp_only_layers": [1], "attention_bias": True, "tie_word_embeddings": True},
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-all": (
        "Mixtral",
        {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 7, "head_dim": 20},
    ),
    "granitemoe": (
        "GraniteMoe",
        {
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "embedding_multiplier": 3.5, "logits_scaling": 3.0},
            **{"attention_multiplier": 0.21, "residual_multiplier": 0.6, "attention_bias": True},
        },
    ),
    "qwen2-moe": (
        "Qwen2Moe",
        {
            **{"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 21, "mlp_only_layers": [1]},
            "shared_expert_intermediate_size": 36,
        },
    ),
    "qwen2-moe-normed": (
        "Qwen2Moe",
        {
            **{"num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "decoder_sparse_step": 2},
            **{"shared_expert_intermediate_size": 33, "norm_topk_prob": True, "qkv_bias": False},
            "tie_word_embeddings": True,
        },
    ),
    "granitemoeshared": (
        "GraniteMoeShared",
        {
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "embedding_multiplier": 3.5, "logits_scaling": 3.0},
            **{"attention_multiplier": 0.21, "residual_multiplier": 0.6, "shared_intermediate_size": 36},
        },
    ),
    "granitemoeshared-none": (
        "GraniteMoeShared",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "shared_intermediate_size": 0, "attention_bias": True},
    ),
    "glm4-moe": (
        "Glm4Moe",
        {
            **{"n_routed_experts": 12, "num_experts_per_tok": 4, "moe_intermediate_size": 21, "n_shared_experts": 2},
            **{"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5, "partial_rotary_factor": 0.5},
            **{"use_qk_norm": True, "attention_bias": True, "head_dim": 20},
        },
    ),
    "glm4-moe-air": (
        "Glm4Moe",
        {
            **{"n_routed_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "head_dim": 16},
            **{"partial_rotary_factor": 0.5, "first_k_dense_replace": 2, "norm_topk_prob": False},
        },
    ),
    "ernie-moe": (
        "Ernie4_5_Moe",
        {
            **{"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 21, "moe_num_shared_experts": 1},
            **{"use_bias": True, "moe_norm_min": 0.3},
        },
    ),
    "ernie-moe-between": (
        "Ernie4_5_Moe",
        {
            **{"moe_num_experts": 5, "moe_k": 3, "moe_intermediate_size": 20, "moe_num_shared_experts": 0},
            **{"num_hidden_layers": 5, "moe_layer_interval": 2, "moe_layer_end_index": 2, "tie_word_embeddings": False},
        },
    ),
    "dots1": (
        "Dots1",
        {
            **{"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 21, "n_shared_experts": 1},
            **{"n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1},
            **{"sliding_window": 7, "max_window_layers": 1, "norm_topk_prob": True},
        },
    ),
    "dots1-bias": (
        "Dots1",
        {
            **{"n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "n_shared_experts": 2},
            **{"sliding_window": None, "attention_bias": True},
        },
    ),
    "hunyuan-moe": (
        "HunYuanMoEV1",
        {"num_experts": 5, "moe_topk": [2, 2, 2], "head_dim": 20, "pad_token_id": 0, "intermediate_size": 36},
    ),
    "minimax-m2": (
        "MiniMaxM2",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "intermediate_size": 21,
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
        },
    ),
    "gpt-oss": (
        "GptOss",
        {
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 7},
            "swiglu_limit": 1.1,
        },
    ),
    "gpt-oss-bare": (
        "GptOss",
        {
            **{"num_local_experts": 3, "num_experts_per_tok": 3, "head_dim": 10, "num_key_value_heads": 1},
            **{"sliding_window": 5, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
            **{"attention_bias": False, "swiglu_alpha": 0.7},
        },
    ),
    "olmoe": ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 2, "pad_token_id": 0}),
    "olmoe-one": ("Olmoe", {"num_experts": 9, "num_experts_per_tok": 1, "norm_topk_prob": True, "pad_token_id": 0}),
}
BRANCH_ROWS |= {
    "afmoe": (
        "Afmoe",
        {
            **{"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 21, "num_shared_experts": 2},
            **{"num_dense_layers": 1, "route_scale": 1.7, "mup_enabled": True, "sliding_window": 7, "head_dim": 16},
            "global_attn_every_n_layers": 2,
        },
    ),
    "solar-open": (
        "SolarOpen",
        {
            **{"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 21, "head_dim": 12},
            **{"n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.0},
        },
    ),
}

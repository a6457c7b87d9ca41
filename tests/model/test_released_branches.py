"""Configs of released mixtures of experts: they open, and what would change the choice of branches is refused."""

from math import prod

import numpy as np
import pytest

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.shapes import Sizes
from coterie.graph.cost import op_cost
from coterie.models.choice import Choice
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph, weight_shapes

MINIMAL = {"vocab_size": 151_936, "hidden_act": "silu", "use_cache": True, "torch_dtype": "bfloat16"}
BIASED = {"sigmoid": True, "biased": True, "added_sum": 1e-20}
RELEASED = {
    "Qwen1.5-MoE-A2.7B": {
        **{"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 2048},
        **{"intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 24},
        **{"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "decoder_sparse_step": 1},
        **{"shared_expert_intermediate_size": 5632, "norm_topk_prob": False, "output_router_logits": False},
        **{"max_window_layers": 21, "sliding_window": 32_768, "use_sliding_window": False, "rope_theta": 1_000_000.0},
        **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    },
    "GLM-4.5-Air": {
        **{"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "hidden_size": 4096, "head_dim": 128},
        **{"intermediate_size": 10_944, "num_attention_heads": 96, "num_key_value_heads": 8, "num_hidden_layers": 46},
        **{"n_routed_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "n_shared_experts": 1},
        **{"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_qk_norm": False},
        **{"first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5},
        **{"attention_bias": True, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000},
        **{"rope_scaling": None, "tie_word_embeddings": False},
    },
    "ERNIE-4.5-21B-A3B": {
        **{"architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "hidden_size": 2560},
        **{"intermediate_size": 12_288, "num_attention_heads": 20, "num_key_value_heads": 4, "num_hidden_layers": 28},
        **{"moe_num_experts": 64, "moe_k": 6, "moe_intermediate_size": 1536, "moe_num_shared_experts": 2},
        **{"moe_layer_start_index": 1, "moe_layer_end_index": 27, "moe_layer_interval": 1, "moe_use_aux_free": True},
        **{"use_bias": False, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0},
        "tie_word_embeddings": True,
    },
    "dots.llm1": {
        **{"architectures": ["Dots1ForCausalLM"], "model_type": "dots1", "hidden_size": 4096},
        **{"intermediate_size": 10_944, "num_attention_heads": 32, "num_key_value_heads": 32, "num_hidden_layers": 62},
        **{"n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_shared_experts": 2},
        **{"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
        **{"scoring_func": "noaux_tc", "first_k_dense_replace": 1, "attention_bias": False, "moe_layer_freq": 1},
        **{"max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 10_000_000, "rope_scaling": None},
    },
    "Hunyuan-A13B": {
        **{"architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "hidden_size": 4096},
        **{"intermediate_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32},
        **{"num_experts": 64, "moe_topk": [8] * 32, "moe_intermediate_size": [3072] * 32, "use_cla": False},
        **{"num_shared_expert": [1] * 32, "n_group": False, "routed_scaling_factor": False, "use_qk_norm": True},
        **{"head_dim": 128, "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 32_768},
        **{"rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True},
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1},
    },
    "MiniMax-M2": {
        **{"architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "hidden_size": 3072, "head_dim": 128},
        **{"intermediate_size": 1536, "num_attention_heads": 48, "num_key_value_heads": 8, "num_hidden_layers": 62},
        **{"num_local_experts": 256, "num_experts_per_tok": 8, "scoring_func": "sigmoid", "use_routing_bias": True},
        **{"use_qk_norm": True, "qk_norm_type": "per_layer", "rotary_dim": 64, "shared_intermediate_size": 0},
        **{"max_position_embeddings": 196_608, "rms_norm_eps": 1e-6, "rope_theta": 5_000_000},
    },
}


def opened(name, **changes):
    return ModelConfig.from_hf({**MINIMAL, **RELEASED[name], **changes}, name)


# Branches, how many are taken, their width, that of the shared one, the layers that have none.
@pytest.mark.parametrize(
    ("name", "sizes", "choice"),
    [
        ("Qwen1.5-MoE-A2.7B", (60, 4, 1408, 5632, ()), Choice()),
        ("GLM-4.5-Air", (128, 8, 1408, 1408, (0,)), Choice(True, **BIASED)),
        ("ERNIE-4.5-21B-A3B", (64, 6, 1536, 3072, (0,)), Choice(True, biased=True, min_sum=1e-12)),
        ("dots.llm1", (128, 6, 1408, 2816, (0,)), Choice(True, scale=2.5, **BIASED)),
        ("Hunyuan-A13B", (64, 8, 3072, 3072, ()), Choice(True)),
        ("MiniMax-M2", (256, 8, 1536, 0, ()), Choice(True, sigmoid=True, biased=True)),
    ],
)
def test_branches(name, sizes, choice):
    config = opened(name)
    found = config.branches
    plain = tuple(layer for layer in range(config.num_layers) if layer not in found.layers)
    assert (found.count, found.taken, found.intermediate_size, found.shared, plain) == sizes
    assert found.choice == choice


def sizes_of(name, num_layers):
    """Weights in all, and those that a token reads, of the model with so many layers."""
    as_many = {"moe_topk": 8} if "moe_topk" in RELEASED[name] else {}
    config = opened(name, num_hidden_layers=num_layers, **as_many)
    graph = decoder_graph(config, dict.fromkeys(weight_shapes(config), DType.BF16))
    read = sum(op_cost(graph, op, Sizes.decode(1, 1)).weight_bytes for op in graph.ops)
    return np.array([sum(prod(value.shape) for value in graph.weights), read / 2]) / 1e9


# In billions, as published; with a row of the embedding alone a token of Qwen reads 2.4, with all of it 2.7.
PUBLISHED = {
    **{"Qwen1.5-MoE-A2.7B": (14.3, 2.4), "GLM-4.5-Air": (106, 12), "ERNIE-4.5-21B-A3B": (21, 3)},
    **{"dots.llm1": (142, 14), "Hunyuan-A13B": (80, 13), "MiniMax-M2": (230, 10)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_as_many_as_published_and_as_many_are_read(name):
    """Those of two layers, and of the third as often as there are more."""
    two, three = sizes_of(name, 2), sizes_of(name, 3)
    found = two + (RELEASED[name]["num_hidden_layers"] - 2) * (three - two)
    assert (np.abs(found / PUBLISHED[name] - 1) < (0.05, 0.2)).all()  # published as whole billions


def test_heads():
    air, m2, dots = opened("GLM-4.5-Air"), opened("MiniMax-M2"), opened("dots.llm1")
    assert (air.qk_norm, opened("GLM-4.5-Air", use_qk_norm=True).qk_norm) == (False, True)
    assert [2 * len(c.rope.inv_freq) for c in (air, m2, dots)] == [64, 64, 128]
    assert not air.rope.interleaved
    assert opened("ERNIE-4.5-21B-A3B").rope.interleaved
    assert (m2.qk_norm_all_heads, dots.qk_norm_all_heads, dots.windows[-1]) == (True, False, 0)
    assert opened("dots.llm1", max_window_layers=60, sliding_window=100).windows[-3:] == (0, 100, 100)
    assert (opened("Qwen1.5-MoE-A2.7B").qkv_bias, opened("Qwen1.5-MoE-A2.7B", qkv_bias=False).qkv_bias) == (True, False)


def test_biases_of_ernie_are_those_of_the_logits_too():
    assert opened("ERNIE-4.5-21B-A3B", use_bias=True).head_bias
    assert not opened("ERNIE-4.5-21B-A3B").head_bias


def test_groups():
    grouped = opened("GLM-4.5-Air", n_group=8, topk_group=4).branches.choice
    assert (grouped.groups, grouped.taken_groups, grouped.group_best) == (8, 4, 2)
    assert opened("GLM-4.5-Air", n_group=8, topk_group=8).branches.choice.groups == 0


WRONG = {
    "n_group is 3; it must be a divisor of the 128 branches": ("GLM-4.5-Air", {"n_group": 3}, CheckpointError),
    "n_group is 128; .* leaves a group at least 2": ("GLM-4.5-Air", {"n_group": 128}, CheckpointError),
    "topk_group is 5; it must be at most the 4 groups": ("dots.llm1", {"n_group": 4, "topk_group": 5}, CheckpointError),
    "enough for 8 branches of 4 in a group": ("GLM-4.5-Air", {"n_group": 32}, CheckpointError),
    "scoring_func is 'softmax'; it must be sigmoid or": ("dots.llm1", {"scoring_func": "softmax"}, CheckpointError),
    "none of the 46 layers has branches": ("GLM-4.5-Air", {"first_k_dense_replace": 46}, UnsupportedError),
    "routed_scaling_factor = 2.5 means": ("Qwen1.5-MoE-A2.7B", {"routed_scaling_factor": 2.5}, UnsupportedError),
    "use_routing_bias = False is not supported": ("MiniMax-M2", {"use_routing_bias": False}, UnsupportedError),
    "layers of which tokens take different": ("Hunyuan-A13B", {"moe_topk": [8] * 31 + [4]}, UnsupportedError),
    "num_nextn_predict_layers = 1 means": ("dots.llm1", {"num_nextn_predict_layers": 1}, UnsupportedError),
    "n_routed_experts is missing": ("dots.llm1", {"n_routed_experts": None}, CheckpointError),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_or_not_run_is_said(sentence):
    name, changes, error = WRONG[sentence]
    with pytest.raises(error, match=sentence):
        opened(name, **changes)

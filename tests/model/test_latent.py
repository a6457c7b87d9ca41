"""Models with latent attention against transformers, and one answer however they are stepped, to the bit on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
from tests.model import adapters, tiny
from tests.model.configs import check_refused
from tests.model.runner import Stepper, prompt_logits
from tests.model.test_merge import logits_of
from tests.model.theirs import prompt_of, relative_error
from tests.model.ways import FP32_TOLERANCE, WAYS, check_bits, check_float32, check_packed, check_rounded, check_way

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.graph.compile import compile_graph
from coterie.models.config import ModelConfig
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.model import open_model
from coterie.models.packing import Packing

ORIGINAL = {"original_max_position_embeddings": 32_768}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}


@pytest.mark.parametrize("backend", ["cpu", pytest.param("reference", marks=pytest.mark.long)])
@pytest.mark.parametrize("row", tiny.LATENT_ROWS)
def test_float32(row, backend, folder_of, theirs_of, make_backend):
    check_float32(backend, row, "default", folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("row", ["deepseek-v2", "deepseek-v3"])
def test_yarn_makes_scores_larger(row, folder_of, theirs_of, make_backend):
    check_float32("cpu", row, "yarn-all", folder_of, theirs_of, make_backend)


def test_float32_by_the_reference(folder_of, theirs_of, make_backend):
    check_float32("reference", "deepseek-v3", "yarn", folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounded_types_are_within_the_error_of_transformers(dtype, folder_of, theirs_of, make_backend):
    check_rounded("cpu", "youtu", "default", dtype, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("row", ["deepseek-v3", *(pytest.param(r, marks=pytest.mark.long) for r in tiny.LATENT_ROWS)])
def test_a_token_has_the_same_bits_alone_in_a_batch_and_in_a_prompt(row, folder_of, make_backend):
    check_bits(Stepper(make_backend("cpu", open_model(folder_of(row, dtype="bf16")))))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_answer(way, folder_of, theirs_of, make_backend):
    check_way(Stepper(make_backend("cpu", open_model(folder_of("deepseek-v2")), **WAYS[way])), theirs_of("deepseek-v2"))


def test_regions_of_a_layer(folder_of):
    program = compile_graph(open_model(folder_of("deepseek-v2")).graph, "cache")
    kernels = [r.kernel for r in program.regions if r.stage == "layers.0"]
    attention = ["rms_norm", "linear", "linear", "latent_append", "latent_queries", "latent_attention", "latent_values"]
    assert kernels == [*attention, "linear_add", "norm_gate_up_silu_mul", "linear_add"]


def test_a_token_keeps_one_row_of_each_layer(folder_of):
    """20 latent numbers and 8 rotated ones, where four heads of keys and values would be 4 (20 + 10)."""
    model = open_model(folder_of("deepseek-v2", dtype="bf16"))
    assert model.kv.bytes_per_token == 3 * (20 + 8) * 2


@pytest.mark.parametrize("dtype", [DType.Q8, DType.Q4])
def test_packed(dtype, folder_of, tmp_path, make_backend):
    """What is read head by head stays as it is."""
    folder, names = folder_of("deepseek-v3", dtype="bf16"), ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
    packed, stay = tuple(f"self_attn.{name}.weight" for name in names), ("kv_b_proj.weight",)
    model = check_packed(
        folder, Packing(dtype, None), tmp_path / "packed", make_backend, stay, packed, middle_error, bound=2e-3
    )
    assert model.graph.values["model.layers.0.self_attn.kv_b_proj.weight"].dtype is model.kv.dtype is DType.BF16


def middle_error(found, wanted):
    """Of the logit in the middle, as rounding may turn a choice of a branch over."""
    return np.median(np.abs(found - wanted)) / np.abs(wanted).max()


def test_adapters_of_all_but_what_is_read_head_by_head(folder_of, tmp_path, make_backend):
    base, names = folder_of("deepseek-v3"), ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj")
    parts = adapters.parts(tiny.load(base), names)
    model = open_adapted(open_model(base), adapters.write(tmp_path / "adapter", parts))
    prompt = prompt_of(257)
    wanted = logits_of(adapters.hook(tiny.load(base), parts, lambda _: 2.0), prompt)
    assert relative_error(prompt_logits(make_backend("cpu", model), prompt), wanted) <= FP32_TOLERANCE
    parts = adapters.parts(tiny.load(base), ("kv_b_proj",))
    folder = adapters.write(tmp_path / "heads", parts)
    with pytest.raises(
        UnsupportedError, match=r"kv_b_proj.weight, which latent attention reads head by head.*merge it"
    ):
        open_adapted(open_model(base), folder)
    merged = open_model(merge_folder(base, folder, tmp_path / "merged").folder)
    stepper = Stepper(make_backend("cpu", merged))
    wanted = logits_of(adapters.hook(tiny.load(base), parts, lambda _: 2.0), prompt)
    assert relative_error(stepper.feed((stepper.sequence(), prompt)), wanted) <= FP32_TOLERANCE


RELEASED = {
    "DeepSeek-V2-Lite": {
        **{"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048},
        **{"intermediate_size": 10_944, "moe_intermediate_size": 1408, "num_hidden_layers": 27, "vocab_size": 102_400},
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64},
        **{"num_experts_per_tok": 6, "first_k_dense_replace": 1, "norm_topk_prob": False, "scoring_func": "softmax"},
        **{"topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "moe_layer_freq": 1},
        **{"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        **{"v_head_dim": 128, "max_position_embeddings": 163_840, "rope_theta": 10_000, "rms_norm_eps": 1e-6},
        "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "Moonlight-16B-A3B": {
        **{"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 2048},
        **{"intermediate_size": 11_264, "moe_intermediate_size": 1408, "num_hidden_layers": 27, "vocab_size": 163_840},
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64},
        **{"num_experts_per_tok": 6, "first_k_dense_replace": 1, "norm_topk_prob": True, "scoring_func": "sigmoid"},
        **{"topk_method": "noaux_tc", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446},
        **{"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        **{"v_head_dim": 128, "max_position_embeddings": 8192, "rope_theta": 50_000.0, "num_nextn_predict_layers": 0},
    },
    "GLM-4.7-Flash": {
        **{"model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"], "hidden_size": 2048},
        **{"intermediate_size": 10_240, "moe_intermediate_size": 1536, "num_hidden_layers": 47, "vocab_size": 154_880},
        **{"num_attention_heads": 20, "num_key_value_heads": 20, "n_shared_experts": 1, "n_routed_experts": 64},
        **{"num_experts_per_tok": 4, "first_k_dense_replace": 1, "norm_topk_prob": True, "topk_method": "noaux_tc"},
        **{"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8, "num_nextn_predict_layers": 1},
        **{"q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64},
        **{
            "v_head_dim": 256,
            "max_position_embeddings": 202_752,
            "rope_theta": 1_000_000,
            "partial_rotary_factor": 1.0,
        },
    },
}


def test_a_config_of_minicpm3_as_released():
    """Of MiniCPM3-4B, whose values are as wide as hidden_size / heads."""
    raw = {
        "model_type": "minicpm3",
        "architectures": ["MiniCPM3ForCausalLM"],
        "hidden_size": 2560,
        "vocab_size": 73_448,
    }
    raw |= {"intermediate_size": 6400, "num_hidden_layers": 62, "num_attention_heads": 40, "num_key_value_heads": 40}
    raw |= {"kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "scale_emb": 12}
    raw |= {"scale_depth": 1.4, "dim_model_base": 256, "rms_norm_eps": 1e-5, "max_position_embeddings": 32_768}
    raw["rope_scaling"] = {"type": "longrope", "short_factor": [1.05] * 16, "long_factor": [1.1] * 16}
    raw["rope_scaling"] |= ORIGINAL
    found = ModelConfig.from_hf(raw, "MiniCPM3-4B")
    assert (found.latent.values, found.latent.query_rank, found.rope.interleaved) == (64, 768, False)
    assert found.residual_scale == pytest.approx(1.4 / 62**0.5)
    assert (found.embed_scale, found.logits_scale, found.tied_embeddings) == (12, 0.1, True)
    assert ModelConfig.from_hf(raw | {"hidden_size": 2400}, "narrower").latent.values == 60


@pytest.mark.parametrize("name", RELEASED)
def test_configs_as_released(name):
    found = ModelConfig.from_hf(RELEASED[name], name)
    queries = {"GLM-4.7-Flash": 768}.get(name, 0)
    assert (found.latent.rank, found.latent.rotated, found.latent.query_rank) == (512, 64, queries)
    assert (len(found.rope.inv_freq), found.rope.interleaved, found.rope.scale) == (32, True, 1.0)
    assert found.branches.layers == frozenset(range(1, found.num_layers))
    assert found.branches.choice.scale == RELEASED[name]["routed_scaling_factor"]
    assert (found.branches.choice.groups, found.branches.count) == (0, 64)


def test_the_scale_of_yarn():
    """0.1 * 0.707 * ln 40 + 1, squared, of the root of 192."""
    config = RELEASED["DeepSeek-V2-Lite"]
    plain = ModelConfig.from_hf(config | {"rope_scaling": None}, "plain").latent.scale
    assert plain == pytest.approx(192**-0.5)
    assert ModelConfig.from_hf(config, "yarn").latent.scale == pytest.approx(plain * 1.2608**2, rel=1e-4)


@pytest.mark.parametrize(
    ("row", "changes", "sentence"),
    [
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob = True is not supported for deepseek_v2"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; it must be greedy or group_limited"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "branches chosen by scores other than a softmax"),
        ("deepseek-v2", {"num_key_value_heads": 2}, "num_key_value_heads is 2; it must be 4 as num_attention_heads"),
        ("deepseek-v2", {"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 is odd"),
        ("deepseek-v2", {"moe_layer_freq": 2}, "branches in every so many layers"),
        ("deepseek-v2", {"kv_lora_rank": 21}, "kv_a_proj_with_mqa.weight has shape .* but config.json wants"),
        ("deepseek-v2", {"q_lora_rank": 8}, "q_a_proj.weight .* is missing"),
        ("deepseek-v3", {"n_group": None}, "n_group is missing, and its default is not supported for deepseek_v3"),
        ("deepseek-v3", {"rope_interleave": 3}, "rope_interleave is 3"),
        ("glm4-moe-lite", {"mlp_layer_types": ["dense", "wide", "sparse"]}, "names, dense or sparse"),
        ("minicpm3", {"scale_depth": None}, "scale_depth is missing, and its default is not supported for minicpm3"),
        ("youtu", {"n_routed_experts": 4}, "mixture of experts inside a model, which is not supported"),
    ],
)
def test_what_is_wrong_or_not_run_is_said(row, changes, sentence, folder_of, tmp_path):
    check_refused(folder_of(row), tmp_path / "changed", changes, sentence)

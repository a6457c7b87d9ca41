"""Models whose sequences keep a state of one size (Qwen3.5, Qwen3-Next, LFM2): agreement with transformers, refusals.

One answer however it is stepped; the state is in the blocks at the beginning of a sequence's table.
"""

from collections import defaultdict
from math import prod

import pytest
import torch
from tests.model import tiny
from tests.model.configs import check_refused
from tests.model.runner import BACKENDS, Stepper
from tests.model.test_nested import SIGLIP, TEXT, save_whole
from tests.model.theirs import ask
from tests.model.ways import (
    WAYS,
    check_bits,
    check_float32,
    check_packed,
    check_rounded,
    check_theirs,
    check_way,
)

from coterie.core.dtypes import DType
from coterie.devices.cpu.device import CpuDevice
from coterie.graph.compile import compile_graph, kv_shape
from coterie.models.config import ModelConfig
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.registry import decoder_graph, weight_shapes


@pytest.mark.parametrize(
    ("backend", "row"),
    [
        *(("cpu", row) for row in (*tiny.DELTA_ROWS, *tiny.DELTA_MOE)),
        ("reference", "qwen3.5"),
        pytest.param("reference", "qwen3.5-first", marks=pytest.mark.long),
        pytest.param("reference", "qwen3.5-moe", marks=pytest.mark.long),
        *(("reference", row) for row in ("lfm2", "lfm2-moe", "qwen3-next")),
    ],
)
def test_float32(backend, row, folder_of, theirs_of, make_backend):
    check_float32(backend, row, "default", folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", [*tiny.DELTA_ROWS, *tiny.DELTA_MOE])
def test_rounded_types_are_within_the_error_of_transformers(row, dtype, folder_of, theirs_of, make_backend):
    check_rounded("cpu", row, "default", dtype, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("row", [*tiny.DELTA_ROWS, *tiny.DELTA_MOE])
def test_bits_do_not_depend_on_how_a_prompt_is_cut_or_on_who_is_beside(row, dtype, folder_of, make_backend):
    check_bits(Stepper(make_backend("cpu", open_model(folder_of(row, dtype=dtype)))))


@pytest.mark.parametrize("row", ["qwen3.5", "lfm2", "qwen3-next"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_answer(way, row, folder_of, theirs_of, make_backend):
    check_way(Stepper(make_backend("cpu", open_model(folder_of(row)), **WAYS[way])), theirs_of(row))


def test_regions_of_both_kinds_of_layers(folder_of):
    program = compile_graph(open_model(folder_of("qwen3.5")).graph, "cache")
    kernels = [[r.kernel for r in program.regions if r.stage == f"layers.{layer}"] for layer in (0, 3)]
    feed_forward = ["norm_gate_up_silu_mul", "linear_add"]
    assert kernels[0][-5:] == ["causal_conv", "gated_delta_norm", "linear_add", *feed_forward]
    assert kernels[1][-6:] == ["norm_rope_append", "attention", "sigmoid_mul", "linear_add", *feed_forward]


# A row, tensors that are small and stay as they are, and some that are packed.
PACKED = {
    "qwen3.5": (
        ("A_log", "dt_bias", "conv1d.weight", "in_proj_a.weight", "in_proj_b.weight", "norm.weight"),
        ("linear_attn.in_proj_qkv.weight", "self_attn.q_proj.weight"),
    ),
    "qwen3-next": (
        ("A_log", "dt_bias", "conv1d.weight", "in_proj_ba.weight", "norm.weight", "mlp.gate.weight"),
        ("linear_attn.in_proj_qkvz.weight", "self_attn.q_proj.weight", "mlp.experts.0.up_proj.weight"),
    ),
    "lfm2": (
        ("conv.conv.weight", "norm.weight"),
        ("conv.in_x.weight", "conv.out_proj.weight", "feed_forward.w2.weight"),
    ),
    "lfm2-moe": (("expert_bias", "feed_forward.gate.weight"), ("feed_forward.experts.0.w1.weight", "conv.in_x.weight")),
}


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        *(("qwen3.5", dtype) for dtype in (DType.Q8, DType.Q4, DType.Q4Z)),
        *((row, DType.Q8) for row in PACKED if row != "qwen3.5"),
    ],
)
def test_packed(row, dtype, folder_of, tmp_path, make_backend):
    folder, (stay, packed) = folder_of(row, dtype="bf16"), PACKED[row]
    check_packed(folder, Packing(dtype, None), tmp_path / "packed", make_backend, stay, packed)


WHOLE = {"qwen3_5": ("Qwen3_5", "qwen3.5"), "qwen3_5_moe": ("Qwen3_5Moe", "qwen3.5-moe")}


@pytest.fixture(scope="module", params=["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.long)])
def whole(request, tmp_path_factory):
    """A model that reads images too, as its save_pretrained writes it, with the tensors of multi-token prediction."""
    folder, (prefix, row) = tmp_path_factory.mktemp("whole") / request.param, WHOLE[request.param]
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 48}
    vision |= {"num_position_embeddings": 16}
    ahead = {"mtp.fc.weight": torch.zeros(48, 96)}
    return save_whole(prefix, TEXT | tiny.FAMILY_ROWS[row][1], folder, ahead, vision_config=vision)


def test_the_text_model_inside_one_that_reads_images(whole, make_backend):
    model, theirs = open_model(whole), ask(whole, "fp32")
    assert (model.part_of, model.config.family) == (whole.name, f"{whole.name}_text")
    assert not [name for name in model.checkpoint.tensors if "visual" in name or "mtp" in name]
    check_theirs(make_backend("cpu", model), theirs)


def test_a_config_as_released():
    """Of Qwen3.5-0.8B."""
    text = {"model_type": "qwen3_5_text", "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248_320}
    text |= {"linear_num_key_heads": 16, "linear_num_value_heads": 16, "linear_conv_kernel_dim": 4}
    text |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "full_attention_interval": 4}
    text |= {"attn_output_gate": True, "mtp_num_hidden_layers": 1, "tie_word_embeddings": True}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    text["rope_parameters"] |= {"mrope_interleaved": True, "mrope_section": [11, 11, 10]}
    raw = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text}
    found = ModelConfig.from_hf(raw | {"tie_word_embeddings": True, "vision_config": SIGLIP}, "Qwen3.5-0.8B")
    assert found.attending_layers == (3, 7, 11, 15, 19, 23)
    assert (len(found.delta_nets.layers), found.delta_nets.channels, len(found.rope.inv_freq)) == (18, 6144, 32)
    assert found == ModelConfig.from_hf(text | {"architectures": ["Qwen3_5ForCausalLM"]}, "its text model")


NET, FULL, CONV = "linear_attention", "full_attention", "conv"


@pytest.mark.parametrize(
    ("row", "changes", "sentence"),
    [
        ("qwen3.5", {"layer_types": [NET] * 4}, f"all of its 4 layers are {NET}; use a model that has"),
        ("qwen3.5", {"layer_types": [FULL] * 4}, f"all of its 4 layers are {FULL}"),
        ("qwen3.5", {"layer_types": ["mamba", FULL, NET, NET]}, "layer_types is .* 4 names, full_attention or"),
        ("qwen3.5", {"linear_num_value_heads": 3}, "linear_num_value_heads is 3; .* be a multiple of the 2 key heads"),
        ("qwen3.5", {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim is 1; it must be from 2 to 96"),
        ("qwen3.5", {"attn_output_gate": False}, "attn_output_gate = False is not supported for qwen3_5_text"),
        ("qwen3.5", {"num_experts": 4}, "mixture of experts inside a model, which is not supported"),
        ("lfm2", {"layer_types": [CONV] * 4}, f"all of its 4 layers are {CONV}; use a model that has"),
        ("lfm2", {"layer_types": None, "full_attn_idxs": None}, f"all of its 4 layers are {FULL}"),
        ("lfm2", {"layer_types": None, "full_attn_idxs": ["0"]}, "full_attn_idxs is .* a list of numbers of layers"),
        ("lfm2", {"layer_types": [CONV, FULL, "mamba", CONV]}, "layer_types is .* names, full_attention or conv"),
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache is 1; it must be at least 2"),
        ("lfm2", {"conv_bias": True}, "conv_bias = True is not supported for lfm2"),
    ],
)
def test_what_is_refused(row, changes, sentence, folder_of, tmp_path):
    check_refused(folder_of(row), tmp_path / "changed", changes, sentence)


def test_short_convolutions_as_released():
    """Of LFM2-1.2B, whose width is that of another form of the block; what a sequence keeps is 16 KiB a layer."""
    raw = {"model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 16}
    raw |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65_536, "norm_eps": 1e-5}
    raw |= {"block_ff_dim": 12_288, "block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0}
    raw |= {"block_multiple_of": 256, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "conv_bias": False, "conv_L_cache": 3}
    raw |= {"max_position_embeddings": 128_000, "rope_theta": 1_000_000.0, "conv_dim": 2048, "block_use_swiglu": True}
    found = ModelConfig.from_hf(raw, "LFM2-1.2B")
    assert (found.intermediate_size, found.attending_layers) == (8192, (2, 5, 8, 10, 12, 14))
    assert found.tied_embeddings
    for changes, width in (
        ({"intermediate_size": 10}, 8192),
        ({"block_ff_dim": 10_000}, 6912),
        ({"block_ff_dim": 10_000, "block_ffn_dim_multiplier": None}, 6666),
        ({"block_ff_dim": 10_000, "block_auto_adjust_ff_dim": False}, 10_000),
        ({"block_ff_dim": None, "intermediate_size": 9216}, 6144),
    ):
        assert ModelConfig.from_hf(raw | changes, "changed").intermediate_size == width
    bare = {key: value for key, value in raw.items() if key not in ("block_ffn_dim_multiplier", "block_multiple_of")}
    assert ModelConfig.from_hf(bare | {"block_ff_dim": 10_000}, "bare").intermediate_size == 6912
    sizes = weight_shapes(found)
    assert round(sum(map(prod, sizes.values())) / 1e7) == 117  # 1.17 billion, as published
    kv = kv_shape(decoder_graph(found, defaultdict(lambda: DType.BF16)))
    assert (kv.state_units, kv.unit_bytes) == (10, 16_384)


def test_nets_by_key_heads_as_released():
    """Of Qwen3-Next-80B-A3B, as published: 80 billion numbers."""
    raw = {"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "hidden_size": 2048}
    raw |= {"intermediate_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2}
    raw |= {"head_dim": 256, "vocab_size": 151_936, "full_attention_interval": 4, "linear_conv_kernel_dim": 4}
    raw |= {"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128}
    raw |= {"linear_value_head_dim": 128, "num_experts": 512, "num_experts_per_tok": 10, "norm_topk_prob": True}
    raw |= {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "decoder_sparse_step": 1}
    raw |= {"mlp_only_layers": [], "partial_rotary_factor": 0.25, "rope_theta": 10_000_000, "rope_scaling": None}
    raw |= {"max_position_embeddings": 262_144, "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False}
    found = ModelConfig.from_hf(raw | {"use_sliding_window": False}, "Qwen3-Next-80B-A3B")
    assert (len(found.delta_nets.layers), found.branches.taken, len(found.rope.inv_freq)) == (36, 10, 32)
    assert found.branches.choice.normalised
    assert round(sum(map(prod, weight_shapes(found).values())) / 1e9) == 80


def test_a_block_must_hold_a_unit_of_state(folder_of):
    backend = BACKENDS["cpu"](open_model(folder_of("qwen3.5-first")))
    assert isinstance(backend.device, CpuDevice)
    stepper = Stepper(backend)
    rows = stepper.rows((stepper.sequence(), [1, 2]), sample="last")
    backend.block_bytes = 1024
    with pytest.raises(ValueError, match=r"a block of 1024 bytes holds no token, or unit of state, of 3200 bytes"):
        backend.tokens(rows)
    backend.close()

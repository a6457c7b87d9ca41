"""Models whose layers have a selective state space (Mamba-2): agreement with transformers, refusals, what is kept.

One answer however it is stepped. Released configs are here by their numbers alone: no such checkpoint could be had.
"""

import shutil
from collections import defaultdict
from math import inf, prod

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.model import tiny
from tests.model.configs import changed, check_refused
from tests.model.runner import Stepper, prompt_logits
from tests.model.theirs import ask, prompt_of, relative_error
from tests.model.ways import FP32_TOLERANCE, WAYS, check_bits, check_float32, check_packed, check_rounded, check_way

from coterie.core.dtypes import DType
from coterie.graph.compile import compile_graph, kv_shape
from coterie.models.config import ModelConfig
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.registry import decoder_graph, weight_shapes

ROWS = (*tiny.SCAN_ROWS, *tiny.SCAN_MOE)
FEW = ("granite4-h", "granite4-h-moe", "falcon-h1", "nemotron-h", "mamba2")  # one of each kind of layer


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_float32(backend, row, folder_of, theirs_of, make_backend):
    check_float32(backend, row, "default", folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", ROWS)
def test_rounded_types_are_within_the_error_of_transformers(row, dtype, folder_of, theirs_of, make_backend):
    check_rounded("cpu", row, "default", dtype, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize(("row", "dtype"), [*((row, "fp32") for row in ROWS), *((row, "bf16") for row in FEW)])
def test_bits_do_not_depend_on_how_a_prompt_is_cut_or_on_who_is_beside(row, dtype, folder_of, make_backend):
    check_bits(Stepper(make_backend("cpu", open_model(folder_of(row, dtype=dtype)))))


@pytest.mark.parametrize("row", FEW)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_answer(way, row, folder_of, theirs_of, make_backend):
    check_way(Stepper(make_backend("cpu", open_model(folder_of(row)), **WAYS[way])), theirs_of(row))


def test_regions_of_both_kinds_of_layers(folder_of):
    program = compile_graph(open_model(folder_of("granite4-h")).graph, "cache")
    kernels = [[r.kernel for r in program.regions if r.stage == f"layers.{layer}"] for layer in (0, 2)]
    scan = ["causal_conv", "selective_scan_gate", "rms_norm", "linear_add"]
    assert kernels[0][4:8] == scan
    assert "norm_qkv_rope_append" in kernels[1]


# Tensors that are small and stay as they are, and some that are packed.
STAY = ("A_log", "D", "dt_bias", "conv1d.weight", "in_dt.weight", "norm.weight", "router.layer.weight")
PACKED = {
    "granite4-h": ("mamba.in_z.weight", "mamba.in_x.weight", "mamba.out_proj.weight", "self_attn.q_proj.weight"),
    "granite4-h-moe": ("block_sparse_moe.experts.0.up_proj.weight", "shared_mlp.up_proj.weight"),
    "falcon-h1": ("mamba.in_x.weight", "self_attn.q_proj.weight", "feed_forward.down_proj.weight"),
    "nemotron-h": ("mixer.in_x.weight", "mixer.up_proj.weight", "mixer.q_proj.weight"),
    "mamba2": ("mixer.in_x.weight", "mixer.out_proj.weight"),
}


@pytest.mark.parametrize(
    ("row", "dtype"),
    [*(("granite4-h", dtype) for dtype in (DType.Q4, DType.Q4Z)), *((row, DType.Q8) for row in PACKED)],
)
def test_packed(row, dtype, folder_of, tmp_path, make_backend):
    folder = folder_of(row, dtype="bf16")
    check_packed(folder, Packing(dtype, None), tmp_path / "packed", make_backend, STAY, PACKED[row])


@pytest.mark.parametrize("row", ["granite4-h", "nemotron-h"])
def test_steps_have_bounds_in_prompts_and_answers(row, folder_of, tmp_path, make_backend):
    """Both bounds are met by some steps; those of an answer are bounded too, unlike transformers' single steps."""
    model = open_model(changed(folder_of(row), tmp_path / row, time_step_limit=[0.6, 0.9]))
    prompt, found = prompt_of(257), []
    for backend in ("reference", "cpu"):
        stepper = Stepper(make_backend(backend, model))
        found.append(stepper.feed((stepper.sequence(), prompt)))
    assert relative_error(found[1], found[0]) <= FP32_TOLERANCE
    sequence = stepper.sequence()
    np.testing.assert_array_equal(np.concatenate([stepper.feed((sequence, [token])) for token in prompt]), found[1])
    assert relative_error(prompt_logits(make_backend("cpu", open_model(folder_of(row))), prompt), found[1]) > 1e-3


def test_bounds_are_those_of_transformers_in_prompts(folder_of, tmp_path, make_backend):
    folder = changed(folder_of("granite4-h"), tmp_path / "bounded", time_step_limit=[0.6, 0.9])
    theirs, stepper = ask(folder, "fp32"), Stepper(make_backend("cpu", open_model(folder)))
    assert relative_error(stepper.feed((stepper.sequence(), theirs.prompt)), theirs.truth) <= FP32_TOLERANCE


@pytest.mark.parametrize("row", ["nemotron-h", "mamba2"])
def test_files_with_older_names(row, folder_of, tmp_path):
    """Released files begin names with `backbone.`; newer ones of Nemotron-H with `model.`."""
    shutil.copytree(folder_of(row), tmp_path / row)
    tensors = load_file(tmp_path / row / "model.safetensors")
    for old, new in (("backbone.", "model."), ("model.", "backbone.")):
        named = {name.replace(old, new, 1) if name.startswith(old) else name: t for name, t in tensors.items()}
        save_file(named, tmp_path / row / "model.safetensors", {"format": "pt"})
        assert open_model(tmp_path / row).key == open_model(folder_of(row)).key


def _released(**own):
    return {"hidden_act": "silu", "tie_word_embeddings": False, "time_step_limit": [0.0, inf], **own}


# As published: the numbers of a model, what its config says, and what a sequence keeps: units, and bytes of one.
GRANITE = {
    **{"model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"], "vocab_size": 100_352},
    **{"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 1536, "intermediate_size": 512},
    **{"num_hidden_layers": 40, "num_local_experts": 64, "num_experts_per_tok": 6, "shared_intermediate_size": 1024},
    **{"layer_types": ["mamba"] * 5 + ["attention"] + (["mamba"] * 9 + ["attention"]) * 3 + ["mamba"] * 4},
    **{"mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4},
    **{"mamba_expand": 2, "position_embedding_type": "nope", "max_position_embeddings": 131_072},
    **{"embedding_multiplier": 12, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22, "logits_scaling": 6},
    "tie_word_embeddings": True,
}
RELEASED = {
    "granite-4.0-h-tiny": (GRANITE, 6.9e9, 36 * (48 + 2), 4 * 128 * 64),
    "Bamba-9B": (
        {
            **{"model_type": "bamba", "architectures": ["BambaForCausalLM"], "vocab_size": 128_256},
            **{"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128, "mamba_d_head": 64},
            **{"mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2},
        },
        9.78e9,
        29 * (128 + 4),
        4 * 128 * 64,
    ),
    "Falcon-H1-0.5B": (
        {
            **{"model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"], "vocab_size": 32_784},
            **{"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 8},
            **{"num_key_value_heads": 2, "head_dim": 64, "mamba_d_ssm": 1536, "mamba_n_heads": 24, "mamba_d_head": 64},
            **{"mamba_d_state": 128, "mamba_n_groups": 1, "rope_theta": 1e11, "mamba_rms_norm": False},
        },
        0.52e9,
        36 * (24 + 1),
        4 * 128 * 64,
    ),
    "Nemotron-H-8B": (
        {
            **{"model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "vocab_size": 131_072},
            **{"hidden_size": 4096, "intermediate_size": 21_504, "num_hidden_layers": 52, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "head_dim": 128, "n_groups": 8, "conv_kernel": 4, "mlp_hidden_act": "relu2"},
            **{"hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"},
            **{"mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "use_bias": False},
        },
        8.1e9,
        24 * (128 + 4),
        4 * 128 * 64,
    ),
    "Mamba-Codestral-7B": (
        {
            **{"model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], "vocab_size": 32_768},
            **{"hidden_size": 4096, "num_hidden_layers": 64, "num_heads": 128, "head_dim": 64, "state_size": 128},
            **{"n_groups": 8, "conv_kernel": 4, "expand": 2, "use_bias": False, "use_conv_bias": True},
        },
        7.29e9,
        64 * (128 + 4),
        4 * 128 * 64,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_config_as_released(name):
    """Numbers as published, as far as the names of models say them."""
    raw, numbers, units, unit_bytes = RELEASED[name]
    found = ModelConfig.from_hf(_released(**raw), name)
    assert sum(map(prod, weight_shapes(found).values())) == pytest.approx(numbers, rel=0.02)
    kv = kv_shape(decoder_graph(found, defaultdict(lambda: DType.BF16)))
    assert (kv.state_units, kv.unit_bytes) == (units, unit_bytes)


def test_what_is_refused(folder_of, tmp_path):
    for number, (row, changes, sentence) in enumerate(
        [
            ("granite4-h", {"layer_types": ["mamba", "rnn"] * 2}, "layer_types is .* a list of 4 names, mamba or att"),
            ("granite4-h", {"mamba_n_heads": 5}, "mamba_n_heads is 5; it must be a multiple|tensor"),
            ("granite4-h-groups", {"mamba_n_heads": 3}, "mamba_n_heads is 3; it must be a multiple of the 2 groups"),
            ("granite4-h", {"mamba_d_conv": 1}, "mamba_d_conv is 1; it must be from 2 to 288"),
            ("granite4-h", {"time_step_limit": [1.0, 0.5]}, "time_step_limit is .* the smaller one first"),
            ("granite4-h", {"time_step_limit": "none"}, "time_step_limit is 'none'"),
            ("bamba", {"attn_layer_indices": ["1"]}, "attn_layer_indices is .* a list of numbers of layers"),
            ("falcon-h1", {"mamba_d_ssm": 64}, "mamba_n_heads is 6, of 10 channels each; .* all have 64 channels"),
            ("falcon-h1", {"mamba_proj_bias": True}, "mamba_proj_bias = True is not supported for falcon_h1"),
            ("falcon-h1", {"ssm_multipliers": [1.0]}, "ssm_multipliers is .* a list of 5 numbers"),
            ("falcon-h1", {"mlp_multipliers": [1.0, "2"]}, "mlp_multipliers is '2'; it must be a number above 0"),
            ("nemotron-h", {"layers_block_type": ["moe", "mamba"]}, "layer 0 is of type moe, whose branches have no"),
            ("nemotron-h", {"layers_block_type": None, "hybrid_override_pattern": "M?"}, "a word of the letters"),
            ("nemotron-h", {"layers_block_type": "M"}, "is 'M'; it must be a list of names"),
            ("nemotron-h", {"attention_bias": True}, "attention_bias = True is not supported for nemotron_h"),
            (
                "nemotron-h",
                {"mamba_hidden_act": "gelu"},
                "mamba_hidden_act 'gelu' is not supported behind a convolution",
            ),
            ("nemotron-h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act 'silu' is not supported"),
        ]
    ):
        check_refused(folder_of(row), tmp_path / str(number), changes, sentence)

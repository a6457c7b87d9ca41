"""Weights that others quantised: what is left out and said, and what is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import compressed, others
from tests.model.formats import FORMATS, UP, add, asymmetric, refused
from tests.system.commands import refused as is_refused
from tests.system.commands import run

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.model import open_model
from coterie.models.packing import REPACKED_METHODS
from coterie.models.quantised.methods import METHODS
from coterie.models.repack import repack_folder


def test_what_rounds_activations_and_kv_is_left_out_and_said(quantised, tmp_path):
    """Scales of inputs and of keys and values, which mean nothing where neither is rounded."""
    folder = quantised(FORMATS["float-quantized by row"])
    plain = repack_folder(folder, tmp_path / "plain", DType.Q8)
    add(folder, **{f"{UP}.input_scale": torch.ones(1), "model.layers.0.self_attn.k_scale": torch.ones(1)})
    section = others.section_of(folder) | {"kv_cache_scheme": {"num_bits": 8}}
    compressed.configure(folder, quantization_config=section)
    made = repack_folder(folder, tmp_path / "more", DType.Q8)
    assert made.notes == ("it quantises input_activations and kv_cache_scheme as well, which is not done here",)
    assert plain.notes == ("it rounds activations to 8 bits as well, which is not done here",)
    assert (made.folder / "model.safetensors").read_bytes() == (plain.folder / "model.safetensors").read_bytes()
    weights_alone = quantised_alone(folder)
    refused(UnsupportedError, ["k_scale", "input_scale"], weights_alone, tmp_path / "out", DType.Q8)


def quantised_alone(folder):
    """The same folder, whose config says nothing of activations or KV."""
    section = others.section_of(folder) | {"kv_cache_scheme": None}
    section["config_groups"]["group_0"]["input_activations"] = None
    compressed.configure(folder, quantization_config=section)
    return folder


def test_groups_that_were_never_ordered_and_zeros_that_are_none(quantised, tmp_path):
    """compressed-tensors may store an order of -1 everywhere, and zeros of symmetric weights."""
    folder = quantised(FORMATS["whole"])
    plain = repack_folder(folder, tmp_path / "plain", DType.Q4)
    zeros = {f"{UP}.weight_zero_point": torch.zeros(192, 2).to(torch.int8)}
    add(folder, **{f"{UP}.weight_g_idx": torch.full((64,), -1).int()}, **zeros)
    made = repack_folder(folder, tmp_path / "more", DType.Q4)
    assert (made.folder / "model.safetensors").read_bytes() == (plain.folder / "model.safetensors").read_bytes()


def test_the_command_says_what_it_takes_and_what_was_lost(quantised, tmp_path):
    folder = quantised(FORMATS["fp8"])
    for words in (("check", folder), ("run", folder, "--expert", "theirs", "x")):
        is_refused(run(*words), "'fp8'", "coterie quantize FOLDER OUT", "--bits")
    is_refused(run("quantize", folder, tmp_path / "out"), "floats of 8 bits", "--bits 8, 4z, 4, mxfp4 or 16")
    for options, layers, tables in (
        (("8",), "int8", None),
        (("4", "--embedding-bits", "8"), "int4", "int8"),
        (("16",), None, None),
    ):
        out = tmp_path / "-".join(options)
        report = json.loads(run("quantize", folder, out, "--json", "--bits", *options).stdout)
        assert (report["layers"], report["tables"], report["exceptions"]) == (layers, tables, {})
        assert report["notes"] == ["it rounds activations to 8 bits as well, which is not done here"]
        assert {kind["type"] for kind in report["kinds"]} <= {"Q8", "Q4", "BF16"}
        assert all(kind["rms_error"] > 0 for kind in report["kinds"])
        assert open_model(out)
    printed = run("quantize", folder, tmp_path / "printed", "--bits", "8")
    assert "note: of the source: it rounds activations" in " ".join(printed.stdout.split())
    is_refused(run("quantize", folder, tmp_path / "out", "--bits", "16", "--embedding-bits", "8"), "--embedding-bits")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gptq in order of activations", ["g_idx", "order of their own"]),
        ("whole, asymmetric", ["groups are of 16 columns, where multiples of 32"]),
        ("whole of 8 bits by row", ["whole numbers go from -128", "-127 to 127", "--bits 8, 4z, 4, mxfp4 or 16"]),
        ("fp8", ["floats of 8 bits", "--bits 8, 4z, 4, mxfp4 or 16"]),
        ("float-quantized by row", ["floats of 8 bits"]),
    ],
)
def test_without_a_choice_a_loss_is_refused(name, words, quantised, tmp_path):
    folder = quantised(FORMATS[name])
    refused(UnsupportedError, words, folder, tmp_path / "out")


def test_codes_that_no_type_holds_are_refused(folder_like, tmp_path):
    """8 bits with zeros have 256 numbers on one side."""
    folder = folder_like()
    others.gptq(folder, -1, bits=8, version=2, scales=torch.bfloat16)
    refused(UnsupportedError, ["whole numbers go from -", "-127 to 127"], folder, tmp_path / "out")


def test_biases_of_zeros_mean_nothing(folder_like, tmp_path):
    """AutoGPTQ gives every module one; a head that is the embedding may be stored beside it."""
    folder = folder_like("llama-tied")
    others.gptq(folder, zero=8)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"{UP}.bias": torch.zeros(192).half(), "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert open_model(repack_folder(folder, tmp_path / "made", DType.Q4).folder)
    tensors[f"{UP}.bias"][3] = 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(UnsupportedError, [f"{UP}.bias", "not understood"], folder, tmp_path / "out", DType.Q4)
    add(folder, **{f"{UP}.bias": None, "lm_head.weight": tensors["lm_head.weight"] + 1})
    refused(UnsupportedError, ["lm_head.weight", "not understood"], folder, tmp_path / "out", DType.Q4)


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (others.gptq, {"bits": 3}, ["bits is 3"]),
        (others.gptq, {"checkpoint_format": "marlin"}, ["'marlin'", "stored for a kernel"]),
        (others.gptq, {"is_marlin_format": True}, ["stored for a kernel"]),
        (others.gptq, {"group_size": 64}, ["2 groups for 64 columns", "group_size 64"]),
        (others.gptq, {"group_size": 0}, ["group_size is 0"]),
        (others.gptq, {"bits": 8}, ["qweight", "I32 [8, 64]", "I32 [16, any]"]),
        (others.awq, {"version": "gemv"}, ["'gemv'"]),
        (others.awq, {"bits": 8}, ["bits 8"]),
        (others.fp8, {"fmt": "e5m2"}, ["'e5m2'"]),
        (others.fp8, {"weight_block_size": [128, 128]}, ["weight_scale_inv", "F32 [2, 2]", "[1, 1]"]),
        (others.fp8, {"weight_block_size": [0, 128]}, ["two whole numbers"]),
        (others.whole, {"format": "marlin-24"}, ["'marlin-24'", "pack-quantized"]),
        (others.whole, {"transform_config": {"a": 1}}, ["transform_config"]),
        (others.whole, {"sparsity_config": {"format": "sparse-24-bitmask"}}, ["sparsity_config"]),
        (others.whole, {"quant_method": "auto-round"}, ["'auto-round'", "gptq, awq, fp8, compressed-tensors"]),
    ],
)
def test_what_a_config_says_otherwise(make, changes, words, quantised, tmp_path):
    folder = quantised(make)
    compressed.configure(folder, quantization_config=others.section_of(folder) | changes)
    refused((UnsupportedError, CheckpointError), words, folder, tmp_path / "out", DType.BF16)


@pytest.mark.parametrize(
    ("make", "tensors", "words"),
    [
        (others.gptq, {f"{UP}.qzeros": torch.full((2, 24), -1).int()}, ["zero of 15", "others for 16"]),
        (others.gptq, {f"{UP}.qzeros": None}, ["qzeros", "is missing"]),
        (others.gptq, {f"{UP}.g_idx": torch.full((64,), 2).int()}, ["groups 2 to 2 of 2"]),
        (others.gptq, {f"{UP}.g_idx": torch.zeros(63).int()}, ["I32 [63] for 64 columns"]),
        (others.gptq, {f"{UP}.scales": torch.ones(2, 191).half()}, ["F16 [2, 191]", "[any, 192]"]),
        (others.gptq, {f"{UP}.scales": torch.full((2, 192), torch.nan).half()}, [UP, "not a number"]),
        (others.awq, {f"{UP}.qweight": torch.zeros(64, 23).int()}, ["F16 [2, 192]", "[any, 184]"]),
        (others.awq, {f"{UP}.{kind}": torch.zeros(rows, 25).int() for kind, rows in (("qweight", 64), ("qzeros", 2))}
         | {f"{UP}.scales": torch.ones(2, 200).half()}, ["has 200 rows but config.json wants 192"]),
        (others.awq, {"model.norm.weight": None}, ["model.norm.weight [64] is missing"]),
        (others.fp8, {f"{UP}.weight_scale_inv": None}, [f"{UP}.weight_scale_inv", "is missing"]),
        (others.fp8, {f"{UP}.extra": torch.ones(1)}, [f"{UP}.extra", "not understood"]),
        (others.whole, {f"{UP}.weight_packed": None, f"{UP}.weight": torch.ones(9, 64)}, ["[9, 64]", "[192, 64]"]),
        (others.whole, {f"{UP}.weight_packed": None, f"{UP}.weight": torch.ones(192, 64).long()}, ["I64"]),
        (asymmetric, {f"{UP}.weight_zero_point": None}, [f"{UP}.weight_zero_point] is missing, and sym"]),
        (asymmetric, {f"{UP}.weight_zero_point": torch.zeros(24, 4).char()}, ["I8 [24, 4]", "I32 [24, 4] is"]),
        (asymmetric, {f"{UP}.weight_zero_point": torch.full((192, 4), 65539).long()}, ["from 65539 to", "-8 to 7"]),
        (asymmetric, {f"{UP}.weight_zero_point": torch.full((192, 4), -9).char()}, ["zeros from -9", "-8 to 7"]),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(make, tensors, words, quantised, tmp_path):
    folder = quantised(make)
    add(folder, **tensors)
    refused((UnsupportedError, CheckpointError), words, folder, tmp_path / "out", DType.BF16)


@pytest.mark.parametrize("layers", [None, DType.Q4Z, DType.BF16])
@pytest.mark.parametrize("scale", [3e38, torch.inf, torch.nan])
def test_weights_that_are_no_numbers_are_refused_whatever_is_made_of_them(scale, layers, quantised, tmp_path):
    """A scale may be finite where a weight is not: the remedy is another file, and no other --bits."""
    folder = quantised(others.whole)
    add(folder, **{f"{UP}.weight_scale": torch.full((192, 2), scale)})
    refused(CheckpointError, [UP, "infinite or not a number", "get the"], folder, tmp_path / "out", layers)


def test_what_is_infinite_in_a_packed_type_alone_is_refused(quantised, tmp_path):
    """-8 times 4.249e37 is a float32 number, and of the next bfloat16 it is none."""
    folder = quantised(others.whole)
    add(folder, **{f"{UP}.weight_scale": torch.full((192, 2), 4.249e37)})
    refused(UnsupportedError, [UP, "infinite in Q4", "--bits"], folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["gptq", "awq", "fp8", "whole"])
def test_who_opens_such_a_folder_is_told_the_command(name, quantised):
    folder = quantised(FORMATS[name])
    with pytest.raises(UnsupportedError, match=r"quantised weights, .*: coterie quantize FOLDER OUT"):
        open_model(folder)


def test_the_methods_are_those_that_configs_are_told_of():
    assert tuple(METHODS) == REPACKED_METHODS

"""Weights that compressed-tensors packed: repacked they are the same numbers, and what would not be is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import compressed, tiny
from tests.model.theirs import runs_as

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.core.packed import packed_as_is, unpack
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing
from coterie.models.quantised.methods import is_repacked
from coterie.models.quantize import quantize_folder
from coterie.models.repack import repack_folder

SIZES = {"hidden_size": 64, "intermediate_size": 192}  # rows of whole groups
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def folder_like(tmp_path_factory):
    """A function (row, type) -> a tiny folder of it, with rows of whole groups."""

    def get(row, dtype="bf16"):
        class_name, own = tiny.FAMILY_ROWS[row]
        inner = {"moe_intermediate_size": 64} if "moe_intermediate_size" in own else {}
        tiny.FAMILY_ROWS["wide"] = (class_name, {**own, **SIZES, **inner})
        try:
            return tiny.save(tiny.make("wide"), tmp_path_factory.mktemp(row), dtype)
        finally:
            del tiny.FAMILY_ROWS["wide"]

    return get


@pytest.fixture
def theirs(folder_like):
    """A packed folder, which a test may damage."""
    folder = folder_like("llama")
    compressed.compress(folder, 32)
    return folder


def change(folder, **tensors):
    whole = {**load_file(folder / "model.safetensors"), **tensors}
    kept = {name: t for name, t in whole.items() if t is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("row", ["llama-biases", "qwen3-bias", "phi3", "gemma2", "olmoe", "ernie-moe"])
@pytest.mark.parametrize("group", [32, 64, None])
def test_every_weight_is_the_same_number(row, group, folder_like, tmp_path):
    folder = folder_like(row)
    before = load_file(folder / "model.safetensors")
    worth = compressed.compress(folder, group)
    assert is_repacked(folder)
    made = repack_folder(folder, tmp_path / "out")
    model = open_model(made.folder)
    ours = load_weights_f32(model)
    joined = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    for name, exact in worth.items():
        where, last, _ = name.rsplit(".", 2)
        parts = [ours.pop(f"{where}.{part}.weight") for part in joined.get(last, (last,))]
        np.testing.assert_array_equal(np.concatenate(parts), exact)
    for name, found in ours.items():
        np.testing.assert_array_equal(found, before[name].float().numpy().reshape(found.shape))
    assert {(kind.rms_error, kind.bits) for kind in made.kinds} == {(0.0, 4.5)}
    assert made.packing == Packing(DType.Q4, None)
    assert {f.name for f in made.folder.iterdir()} == {f.name for f in folder.iterdir()}


def test_it_runs_as_transformers_runs_the_same_numbers(folder_like, tmp_path, make_backend):
    """On our kernels, whose activations are rounded, and on the reference, where they are not."""
    folder = folder_like("llama", "fp32")  # so that keys and values are float32 too
    model = tiny.load(folder)
    for name, exact in compressed.compress(folder, 64).items():
        model.get_parameter(name).data = torch.tensor(exact).float()
    ours = open_model(repack_folder(folder, tmp_path / "out").folder)
    runs_as(model, ours, make_backend)


def test_shards_and_keys(folder_like, tmp_path):
    """Made from shards it is the same file; it shares programs with experts that we quantised alike."""
    folder = folder_like("llama")
    quantised = open_model(quantize_folder(folder, tmp_path / "own", Packing(DType.Q4, None)).folder)
    compressed.compress(folder, 32)
    whole = repack_folder(folder, tmp_path / "whole").folder
    shards = shutil.copytree(folder, tmp_path / "shards")
    tensors = load_file(shards / "model.safetensors")
    names = sorted(tensors)
    (shards / "model.safetensors").unlink()
    index = {}
    for number, some in enumerate((names[:9], names[9:])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in some}, shards / file, {"format": "pt"})
        index |= dict.fromkeys(some, file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    parted = repack_folder(shards, tmp_path / "parted").folder
    assert (parted / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert open_model(whole).key == quantised.key


def refused(error, words, folder, out):
    with pytest.raises(error) as caught:
        repack_folder(folder, out)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not list(out.parent.glob("out*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_bits": 3}, ["num_bits 3 of type 'int'"]),
        ({"type": "float"}, ["num_bits 4 of type 'float'"]),
        ({"dynamic": True}, ["dynamic is True"]),
        ({"strategy": "block"}, ["strategy is 'block'"]),
    ],
)
def test_schemes(changes, words, theirs, tmp_path):
    compressed.configure(theirs, quantization_config=compressed.section(**changes))
    refused(UnsupportedError, words, theirs, tmp_path / "out")


def test_more_than_weights_and_several_ways(theirs, tmp_path):
    section = compressed.section()
    group = section["config_groups"]["group_0"]
    compressed.configure(theirs, quantization_config=section | {"kv_cache_scheme": {"num_bits": 8}})
    refused(UnsupportedError, ["kv_cache_scheme", "more is quantised than weights"], theirs, tmp_path / "out")
    groups = {"group_0": group | {"input_activations": {"num_bits": 8}}}
    compressed.configure(theirs, quantization_config=section | {"config_groups": groups})
    refused(
        UnsupportedError,
        ["more is quantised than weights", "activations to 8 bits", "--bits"],
        theirs,
        tmp_path / "out",
    )
    groups = {"group_0": group, "group_1": group}
    compressed.configure(theirs, quantization_config=section | {"config_groups": groups})
    refused(UnsupportedError, ["2 ways to quantise"], theirs, tmp_path / "out")
    compressed.configure(theirs, quantization_config=section | {"format": "dense"})
    refused(UnsupportedError, ["format 'dense'"], theirs, tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "tensors", "words"),
    [
        (
            UnsupportedError,
            {f"{UP}.weight_g_idx": torch.arange(64).int() % 2},
            ["g_idx", "multiples of 32 are repacked"],
        ),
        (CheckpointError, {f"{UP}.weight_scale": torch.ones(192, 4).bfloat16()}, ["4 groups for 64 columns", "32"]),
        (CheckpointError, {f"{UP}.weight_scale": torch.full((192, 2), torch.nan).bfloat16()}, ["not a number"]),
        (CheckpointError, {f"{UP}.weight_scale": None}, [f"{UP}.weight_scale] is missing"]),
        (
            CheckpointError,
            {f"{UP}.weight_scale": torch.ones(191, 2).bfloat16()},
            ["BF16 [191, 2]", "[192, any] is expected"],
        ),
        (
            CheckpointError,
            {f"{UP}.weight_packed": torch.zeros(192, 7).int()},
            ["I32 [192, 7]", "I32 [any, 8] is expected"],
        ),
        (
            CheckpointError,
            {f"{UP}.weight_packed": torch.zeros(190, 8).int()},
            ["BF16 [192, 2]", "[190, any] is expected"],
        ),
        (CheckpointError, {"model.norm.weight": None}, ["model.norm.weight [64] is missing"]),
    ],
)
def test_tensors_that_do_not_fit(error, tensors, words, theirs, tmp_path):
    change(theirs, **tensors)
    refused(error, words, theirs, tmp_path / "out")


def test_other_folders_are_refused_and_served_none(folder_of, theirs, tmp_path):
    with pytest.raises(UnsupportedError, match=r"'compressed-tensors' means .*: coterie quantize FOLDER OUT"):
        open_model(theirs)
    assert not is_repacked(folder_of("llama"))
    refused(
        UnsupportedError, ["is of None", "gptq, awq, fp8, compressed-tensors"], folder_of("llama"), tmp_path / "out"
    )
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        repack_folder(theirs, tmp_path / "there")


@pytest.mark.parametrize(("dtype", "low", "high"), [(DType.Q4, -8, 7), (DType.Q8, -127, 127)])
def test_numbers_as_they_are(dtype, low, high):
    """Whole numbers at both ends, rows that end in the middle of a group, scales of either sign."""
    rng = np.random.default_rng(0)
    q = rng.integers(low, high + 1, (5, 300)).astype(np.int8)
    q[0, :2] = low, high
    scales = (rng.integers(-127, 128, (5, -(-300 // (32 if dtype is DType.Q4 else 128)))) / 64).astype(np.float32)
    packed = packed_as_is(q, scales, dtype)
    assert packed.shape == (5, dtype.row_bytes(300))
    exact = q * np.repeat(scales, 32 if dtype is DType.Q4 else 128, axis=1)[:, :300]
    np.testing.assert_array_equal(unpack(packed, dtype, 300), exact)
    q[2, 3] = low - 1
    with pytest.raises(ValueError, match=f"from {low - 1} to {high}, where {low} to {high}"):
        packed_as_is(q, scales, dtype)

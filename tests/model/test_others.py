"""Weights that others quantised: read they are worth what their formats say, packed anew they lose what is reported."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import compressed, others, tiny
from tests.model.runner import Stepper
from tests.model.theirs import prompt_of, relative_error, runs_as
from tests.system.test_cli import refused as is_refused
from tests.system.test_cli import run
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from coterie.checkpoint.folder import Checkpoint
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.packed import pack, unpack
from coterie.models.config import ModelConfig
from coterie.models.fields import Fields
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import KEY, OTHERS, Packing
from coterie.models.quantised.find import Part, find_tensors
from coterie.models.quantised.methods import METHODS, method_of
from coterie.models.repack import repack_folder

SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 1}
UP = "model.layers.0.mlp.up_proj"
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def asymmetric(folder):
    return others.whole(folder, 16, asymmetric=True, scales=torch.bfloat16)


FORMATS = {
    "gptq": lambda folder: others.gptq(folder, zero=8),
    "gptq, a row a group": lambda folder: others.gptq(folder, -1, g_idx=False),
    "gptq of 2 bits, zeros": lambda folder: others.gptq(folder, bits=2),
    "gptq of 8 bits, version 2": lambda folder: others.gptq(folder, 64, bits=8, version=2, scales=torch.bfloat16),
    "gptq in order of activations": lambda folder: others.gptq(folder, 16, ordered=True),
    "awq": others.awq,
    "awq, groups of 48": lambda folder: others.awq(folder, 48),
    "whole": others.whole,
    "whole, asymmetric": asymmetric,
    "whole, asymmetric rows": lambda folder: others.whole(folder, None, asymmetric=True),
    "whole of 8 bits by row": lambda folder: others.whole(folder, None, bits=8),
    "whole in order of activations": lambda folder: others.whole(folder, ordered=True, asymmetric=True),
    "bytes": lambda folder: others.whole(folder, None, bits=8, packed=False),
    "bytes, asymmetric": lambda folder: others.whole(folder, 64, bits=8, packed=False, asymmetric=True),
    "fp8": others.fp8,
    "fp8, bfloat16 scales": lambda folder: others.fp8(folder, (128, 128), torch.bfloat16),
    "fp8, one scale": lambda folder: others.fp8(folder, None),
    "fp8 of AutoFP8": lambda folder: others.fp8(folder, None, name="weight_scale"),
    "float-quantized by row": lambda folder: others.fp8(folder, "row", torch.bfloat16, "compressed-tensors"),
    "float-quantized, one scale": lambda folder: others.fp8(folder, None, method="compressed-tensors"),
    "float-quantized blocks": lambda folder: others.fp8(folder, (64, 32), method="compressed-tensors"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function (row, type) -> a tiny folder of it, with rows of whole groups, made once."""

    @functools.cache
    def get(row, dtype):
        tiny.FAMILY_ROWS["wide"] = (tiny.FAMILY_ROWS[row][0], {**tiny.FAMILY_ROWS[row][1], **SIZES})
        try:
            return tiny.save(tiny.make("wide"), tmp_path_factory.mktemp(row), dtype)
        finally:
            del tiny.FAMILY_ROWS["wide"]

    return get


@pytest.fixture
def folder_like(made, tmp_path):
    """A function (row, type) -> a copy of such a folder, which a test may change."""

    def get(row="llama", dtype="fp32"):
        return shutil.copytree(made(row, dtype), tmp_path / row)

    return get


@pytest.fixture(scope="module")
def quantised_once(made, tmp_path_factory):
    """A function (one that quantises a folder) -> a tiny Llama quantised so, once."""

    @functools.cache
    def get(quantise):
        folder = shutil.copytree(made("llama", "fp32"), tmp_path_factory.mktemp("quantised") / "llama")
        quantise(folder)
        return folder

    return get


@pytest.fixture
def quantised(quantised_once, tmp_path):
    """A function (one that quantises a folder) -> a copy of a folder quantised so, which a test may damage."""
    return lambda quantise: shutil.copytree(quantised_once(quantise), tmp_path / "theirs")


def taken_apart(worth, rows_of):
    """What joined matrices are worth, as their parts."""
    parts = {}
    for name, values in worth.items():
        where, last, _ = name.rsplit(".", 2)
        first = 0
        for part in JOINED.get(last, (last,)):
            own = f"{where}.{part}.weight"
            parts[own] = values[first : first + rows_of[own]]
            first += rows_of[own]
    return parts


def parts_of(folder):
    stored = Checkpoint.open(folder)
    raw = {key: value for key, value in stored.config.items() if key != KEY}
    found = find_tensors(stored, ModelConfig.from_hf(raw, "config"), method_of(Fields(stored.config, "config")))
    return {name: item for name, item in found.items() if isinstance(item, Part)}


@pytest.mark.parametrize(
    ("row", "name"),
    [("qwen3-bias", name) for name in FORMATS]
    + [("phi3", name) for name in ("gptq", "awq", "whole, asymmetric", "fp8")],
)
def test_weights_are_worth_what_the_format_says(row, name, folder_like):
    """All of them, whole and in pieces that begin in the middle of a word, as single matrices and as joined ones."""
    folder = folder_like(row)
    worth = FORMATS[name](folder)
    parts = parts_of(folder)
    exact = taken_apart(worth, {name: part.shape[0] for name, part in parts.items()})
    assert parts.keys() == exact.keys()
    for matrix, part in parts.items():
        rows = part.shape[0]
        for first, last in ((0, rows), (0, 1), (5, 14), (rows - 3, rows)):
            found = part.matrix.values(part.first + first, part.first + last)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, exact[matrix][first:last].astype(np.float32))


def test_every_byte_of_fp8_is_what_torch_says():
    every = torch.arange(256).to(torch.uint8)
    wanted = every.view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(to_f32(every.numpy(), DType.F8_E4M3), wanted)


def test_fp8_is_what_transformers_makes_of_it(folder_like):
    folder = folder_like()
    others.fp8(folder, (32, 16))
    tensors = load_file(folder / "model.safetensors")
    for name, part in parts_of(folder).items():
        stem = name.removesuffix(".weight")
        stored = tensors[f"{stem}.weight"], tensors[f"{stem}.weight_scale_inv"]
        wanted = Fp8Dequantize(None)._dequantize_one(*stored, torch.float32).numpy()
        np.testing.assert_array_equal(part.matrix.values(0, part.shape[0]), wanted)


@pytest.mark.parametrize("name", ["gptq in order of activations", "awq", "bytes, asymmetric", "fp8"])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.Q8, DType.Q4Z, DType.Q4])
def test_packed_anew_what_is_lost_is_reported(name, dtype, folder_like, tmp_path):
    folder = folder_like("llama")
    before, worth = load_file(folder / "model.safetensors"), FORMATS[name](folder)
    made = repack_folder(folder, tmp_path / "out", dtype)
    config = json.loads((made.folder / "config.json").read_text())
    assert (made.packing, KEY in config) == ((None, False) if dtype is DType.BF16 else (Packing(dtype, None), True))
    ours = load_weights_f32(open_model(made.folder))
    for other in ours.keys() - worth.keys():
        np.testing.assert_array_equal(ours[other], before[other].float().numpy())
    for kind in made.kinds:
        names = [name for name in worth if kind.kind in name]
        exact = np.concatenate([worth[name].astype(np.float32).ravel() for name in names]).astype(np.float64)
        lost = np.concatenate([ours[name].ravel() for name in names]) - exact
        rms = np.sqrt(np.mean(exact**2))
        assert kind.rms_error == pytest.approx(np.sqrt(np.mean(lost**2)) / rms, rel=1e-4)
        assert kind.max_error == pytest.approx(np.abs(lost).max() / rms, rel=1e-4)
        assert kind.rms_error < {DType.BF16: 0.003, DType.Q8: 0.02, DType.Q4Z: 0.1, DType.Q4: 0.15}[dtype]
        assert kind.bits == pytest.approx({DType.BF16: 16, DType.Q8: 8.25, DType.Q4Z: 5, DType.Q4: 4.5}[dtype], abs=0.1)
        if dtype is DType.BF16:
            assert kind.dtype is DType.BF16
            wanted = torch.tensor(exact).float().bfloat16().float().numpy()
            np.testing.assert_array_equal(np.concatenate([ours[name].ravel() for name in names]), wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: others.gptq(folder, zero=8),
        lambda folder: others.gptq(folder, 64, zero=7),
        lambda folder: others.whole(folder, None),
    ],
)
def test_whole_numbers_are_kept_and_only_the_scale_rounds(make, folder_like, tmp_path):
    """bfloat16 has 8 bits: at most 2^-8 of a weight is lost, where other whole numbers would lose whole steps."""
    folder = folder_like()
    worth = make(folder)
    ours = load_weights_f32(open_model(repack_folder(folder, tmp_path / "out", DType.Q4).folder))
    for name, exact in worth.items():
        assert (np.abs(ours[name] - exact) <= 2.0**-8 * np.abs(exact)).all()


def test_a_choice_of_scales_never_loses_more_than_ours():
    """Whole numbers out of range (-9, as after a zero of 9) are met by clipping or by a scale of our own."""
    rng = np.random.default_rng(0)
    known = (rng.uniform(0.5, 1.5, (64, 4)) / 64).astype(np.float16).astype(np.float32)
    for low, high, dtype, group in ((-9, 7, DType.Q4, 32), (-15, 1, DType.Q4, 32), (-128, 128, DType.Q8, 128)):
        values = (rng.integers(low, high, (64, 4 * group)) * np.repeat(known, group, axis=1)).astype(np.float32)
        lost = [
            ((unpack(pack(values, dtype, hint), dtype, 4 * group) - values).reshape(64, 4, group) ** 2).sum(axis=-1)
            for hint in (known, None)
        ]
        assert (lost[0] <= lost[1]).all()
        assert lost[0].sum() < 0.9 * lost[1].sum() or low == -15
    infinite = np.full((64, 4), np.inf, np.float32)
    np.testing.assert_array_equal(pack(values, DType.Q8, infinite), pack(values, DType.Q8))


@pytest.mark.parametrize(
    ("packing", "make"),
    [
        (Packing(DType.Q4, None), lambda folder: others.gptq(folder, zero=8, scales=torch.bfloat16)),
        (Packing(DType.Q4, None), lambda folder: others.gptq(folder, bits=2, scales=torch.bfloat16, version=2)),
        (
            Packing(DType.Q8, None),
            lambda folder: others.gptq(folder, -1, bits=8, zero=128, scales=torch.bfloat16, version=2),
        ),
        (Packing(DType.Q8, None), lambda folder: others.whole(folder, None, bits=8, scales=torch.bfloat16, low=-127)),
        (
            Packing(DType.Q8, None),
            lambda folder: others.whole(folder, None, 8, packed=False, scales=torch.bfloat16, low=-127),
        ),
    ],
)
def test_what_a_packed_type_holds_is_repacked_without_loss(packing, make, folder_like, tmp_path):
    folder = folder_like("phi3", "bf16")
    worth = make(folder)
    if packing.layers is DType.Q8:  # 128 is a code of GPTQ that the packed type leaves out
        worth = without_128(folder, worth)
    made = repack_folder(folder, tmp_path / "out")
    assert made.packing == packing
    assert {(kind.rms_error, kind.max_error) for kind in made.kinds} == {(0.0, 0.0)}
    ours = load_weights_f32(open_model(made.folder))
    for name, exact in taken_apart(worth, {name: len(values) for name, values in ours.items()}).items():
        np.testing.assert_array_equal(ours[name], exact)


BF16 = {"scales": torch.bfloat16}
ZEROS = {
    "awq": lambda folder: others.awq(folder, **BF16),
    "awq, groups of 128": lambda folder: others.awq(folder, 128, **BF16),
    "gptq": lambda folder: others.gptq(folder, **BF16),
    "gptq, version 2, groups of 64": lambda folder: others.gptq(folder, 64, version=2, **BF16),
    "gptq, a row a group": lambda folder: others.gptq(folder, -1, **BF16),
    "gptq, zeros of 7": lambda folder: others.gptq(folder, zero=7, **BF16),
    "whole": lambda folder: others.whole(folder, asymmetric=True, **BF16),
    "whole rows": lambda folder: others.whole(folder, None, asymmetric=True, **BF16),
}


@pytest.mark.parametrize(("row", "name"), [("llama", name) for name in ZEROS] + [("phi3", "awq"), ("olmoe", "whole")])
def test_codes_with_zeros_are_repacked_without_loss(row, name, folder_like, tmp_path):
    """At 4 bits and a scale and a zero for each 32 weights, in rows that are not whole groups too."""
    folder = folder_like(row)
    worth = ZEROS[name](folder)
    made = repack_folder(folder, tmp_path / "out")
    assert made.packing == Packing(DType.Q4Z, None)
    packed = [kind for kind in made.kinds if kind.dtype.is_packed]  # what chooses branches becomes bfloat16
    assert {(kind.rms_error, kind.bits) for kind in packed} == {(0.0, 5.0)}
    ours = load_weights_f32(open_model(made.folder))
    for weight, exact in taken_apart(worth, {name: len(values) for name, values in ours.items()}).items():
        if made.packing.dtype_of(weight, exact.shape):
            np.testing.assert_array_equal(ours[weight], exact)


@pytest.mark.parametrize(
    ("layers", "make"),
    [
        (DType.Q4Z, others.awq),
        (DType.Q4Z, others.gptq),
        (DType.Q4Z, lambda folder: others.whole(folder, asymmetric=True)),
        (DType.Q4, lambda folder: others.gptq(folder, zero=8)),
        (DType.Q4, others.whole),
    ],
)
def test_of_float16_scales_what_bfloat16_does_not_hold_is_lost_and_no_more(layers, make, folder_like, tmp_path):
    folder = folder_like()
    worth = make(folder)
    made = repack_folder(folder, tmp_path / "out")
    assert made.packing == Packing(layers, None)
    ours = load_weights_f32(open_model(made.folder))
    for name, exact in worth.items():
        assert (np.abs(ours[name] - exact) <= 2.0**-8 * np.abs(exact)).all()
    assert all(0 < kind.rms_error < 0.0025 for kind in made.kinds)
    printed = run("quantize", folder, tmp_path / "printed")
    for word in ("mlp.down_proj", "0.1", f"{made.kinds[0].bits:.2f}", "bits a weight"):
        assert word in printed.stdout


@pytest.mark.parametrize(
    ("stored", "layers"), [(0x77777777, DType.Q4), (0x77777778, DType.Q4Z), (0x77777776, DType.Q4Z)]
)
def test_one_zero_beside_the_middle_is_enough(stored, layers, quantised, tmp_path):
    """A code less 9 may be -9, and less 7 it may be 8: neither is of int4, in whichever column of whichever matrix."""
    folder = quantised(FORMATS["gptq"])
    zeros = load_file(folder / "model.safetensors")[f"{UP}.qzeros"]
    zeros[1, 3] = stored
    add(folder, **{f"{UP}.qzeros": zeros})
    assert repack_folder(folder, tmp_path / "out").packing == Packing(layers, None)


def test_with_zeros_it_runs_as_transformers_runs_the_same_numbers(folder_like, tmp_path, make_backend):
    folder = folder_like()
    model = tiny.load(folder)
    for name, exact in others.awq(folder, scales=torch.bfloat16).items():
        model.get_parameter(name).data = torch.tensor(exact).float()
    ours = open_model(repack_folder(folder, tmp_path / "out").folder)
    runs_as(model, ours, make_backend)


def test_branches_of_a_layer_have_one_type(folder_like, tmp_path):
    """One that others left as it was is refused before anything is written; packed anew, all are alike."""
    folder = folder_like("olmoe", dtype="bf16")
    others.whole(folder, asymmetric=True, dense="experts.1.up")
    refused(UnsupportedError, ["experts.1.up_proj.weight is BF16", "Q4Z", "--bits"], folder, tmp_path / "out")
    assert open_model(repack_folder(folder, tmp_path / "made", DType.Q4Z).folder)


def test_a_quantised_head_is_repacked_as_the_layers_are(folder_like, tmp_path):
    """GPTQ's lm_head: as it is, by choice as they are, or as embedding and head are to be."""
    folder, head = folder_like(dtype="bf16"), "lm_head.weight"
    exact = others.gptq(folder, head=True, **BF16)[head]
    made = repack_folder(folder, tmp_path / "out")
    assert made.packing == Packing(DType.Q4Z, None, {head: DType.Q4Z})
    np.testing.assert_array_equal(load_weights_f32(open_model(made.folder))[head], exact)
    for name, layers, tables, wanted in (
        ("eight", DType.Q8, None, DType.Q8),
        ("four", DType.Q4, DType.Q8, DType.Q8),
        ("sixteen", DType.BF16, None, None),
    ):
        made = repack_folder(folder, tmp_path / name, layers, tables)
        assert (made.packing.dtype_of(head, exact.shape) if made.packing else None) is wanted
        found = load_weights_f32(open_model(made.folder))[head]
        assert relative_error(found, exact) < 0.02


def test_what_others_left_as_it_was_stays(folder_like, tmp_path):
    """AWQ's modules_to_not_convert and the like: beside packed matrices, one that is not."""
    folder = folder_like(dtype="bf16")
    dense = load_file(folder / "model.safetensors")
    others.awq(folder)
    quantised, stem = load_file(folder / "model.safetensors"), UP
    for kind in ("qweight", "qzeros", "scales"):
        del quantised[f"{stem}.{kind}"]
    save_file(quantised | {f"{stem}.weight": dense[f"{stem}.weight"]}, folder / "model.safetensors", {"format": "pt"})
    made = repack_folder(folder, tmp_path / "out")
    assert made.packing == Packing(DType.Q4Z, None, {f"{stem}.weight": None})
    stored = load_file(made.folder / "model.safetensors")
    assert torch.equal(stored[f"{stem}.weight"], dense[f"{stem}.weight"])
    assert f"{stem}.weight" not in {f"{kind.kind}.weight" for kind in made.kinds}


def without_128(folder, worth):
    """The same folder of GPTQ with no code of 0."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("qweight"):
            stem = name.removesuffix(".qweight")
            bits = tensor.numpy().view(np.uint8).reshape(tensor.shape[0], -1, 4)
            bits[bits == 0] = 1
            q = bits.transpose(0, 2, 1).reshape(-1, tensor.shape[1]).astype(int) - 128
            worth[f"{stem}.weight"] = (q * tensors[f"{stem}.scales"].double().numpy()).T
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return worth


def test_packed_it_runs_as_transformers_runs_the_same_numbers(folder_like, tmp_path, make_backend):
    folder = folder_like()
    model = tiny.load(folder)
    names = others.gptq(folder, zero=8)
    ours = open_model(repack_folder(folder, tmp_path / "out", DType.Q4).folder)
    weights = load_weights_f32(ours)
    for name in names:
        model.get_parameter(name).data = torch.tensor(weights[name])
    runs_as(model, ours, make_backend)


def test_in_bfloat16_it_is_a_folder_that_transformers_runs(folder_like, tmp_path, make_backend):
    folder = folder_like(dtype="bf16")
    others.awq(folder)
    made = repack_folder(folder, tmp_path / "out", DType.BF16).folder
    model, prompt = open_model(made), prompt_of(257)
    loaded, own = tiny.load(made), tiny.load(made, "bf16")
    with torch.no_grad():
        truth, rounded = (one(torch.tensor([prompt])).logits[0].float().numpy() for one in (loaded, own))
    for name, values in load_weights_f32(model).items():
        np.testing.assert_array_equal(values, loaded.get_parameter(name).detach().numpy())
    for backend in ("reference", "cpu"):
        stepper = Stepper(make_backend(backend, model))
        error = relative_error(stepper.feed((stepper.sequence(), prompt)), truth)
        assert 0 < error <= relative_error(rounded, truth)


def test_embedding_and_head_are_packed_where_that_is_asked_for(folder_like, tmp_path):
    folder = folder_like()
    before = load_file(folder / "model.safetensors")
    others.awq(folder)
    made = repack_folder(folder, tmp_path / "out", DType.Q4, DType.Q8)
    assert made.packing == Packing(DType.Q4, DType.Q8)
    tensors = load_file(made.folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(tensors[name].numpy(), pack(before[name].numpy(), DType.Q8))


def test_a_layer_that_stayed_dense_is_packed_too_by_choice(folder_like, tmp_path):
    folder = folder_like()
    worth = others.fp8(folder, dense="layers.0.mlp.up")
    dense = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].numpy()
    made = repack_folder(folder, tmp_path / "four", DType.Q4)
    assert made.notes == ("it rounds activations to 8 bits as well, which is not done here",)
    tensors = load_file(made.folder / "model.safetensors")
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.up_proj.weight"].numpy(), pack(dense, DType.Q4))
    ours = load_weights_f32(open_model(repack_folder(folder, tmp_path / "sixteen", DType.BF16).folder))
    np.testing.assert_array_equal(ours["model.layers.0.mlp.up_proj.weight"], dense)
    assert "model.layers.0.mlp.up_proj.weight" not in worth


def add(folder, **tensors):
    """Store more tensors, or others in their places."""
    whole = {**load_file(folder / "model.safetensors"), **tensors}
    save_file({name: t for name, t in whole.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


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


def refused(error, words, folder, out, layers=None):
    with pytest.raises(error) as caught:
        repack_folder(folder, out, layers)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not list(out.parent.glob("out*"))


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
    assert tuple(METHODS) == OTHERS

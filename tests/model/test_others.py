"""Weights that others quantised: read they are worth what their formats say, packed anew they lose what is reported."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import others
from tests.model.formats import FORMATS, UP, add, refused
from tests.model.theirs import relative_error
from tests.system.commands import run
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from coterie.checkpoint.folder import Checkpoint
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import UnsupportedError
from coterie.core.packed import pack, unpack
from coterie.models.config import ModelConfig
from coterie.models.fields import Fields
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import KEY, Packing
from coterie.models.quantised.find import Part, find_tensors
from coterie.models.quantised.methods import method_of
from coterie.models.repack import repack_folder

JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


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

"""Files that join q, k and v, and gate and up: parts are rows of what is stored, and what does not fit is named."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.runner import BACKENDS, Stepper
from tests.model.theirs import prompt_of

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.graph.fuse import fuse
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

QKV, GATE_UP = "model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"
PARTS = {QKV: ("q_proj", "k_proj", "v_proj"), GATE_UP: ("gate_proj", "up_proj")}


@pytest.fixture
def folder(folder_of, tmp_path):
    """A copy of a tiny Phi-3 that a test may damage."""
    return shutil.copytree(folder_of("phi3"), tmp_path / "phi3")


def change(folder, **tensors):
    """Replace tensors; None removes one."""
    path = folder / "model.safetensors"
    whole = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in whole.items() if tensor is not None}, path, {"format": "pt"})


def parts_of(stored):
    """The names of a stored tensor's parts."""
    where, name, _ = stored.rsplit(".", 2)
    assert name in ("qkv_proj", "gate_up_proj")
    return [f"{where}.{part}.weight" for part in PARTS[stored]]


def apart(folder, target):
    """The same model with each part stored by itself."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    changes = dict.fromkeys(name for name in tensors if "qkv_proj" in name or "gate_up_proj" in name)
    change(target, **changes, **{name: torch.tensor(w) for name, w in load_weights_f32(open_model(folder)).items()})
    return target


def test_parts_are_rows_of_what_is_stored(folder):
    model, stored = open_model(folder), load_file(folder / "model.safetensors")
    found = load_weights_f32(model)
    for name in PARTS:
        joined = np.concatenate([found[part] for part in parts_of(name)])
        np.testing.assert_array_equal(joined, stored[name].numpy())
        offsets = model.layout.offsets(tuple(parts_of(name)))
        sizes = [4 * found[part].size for part in parts_of(name)]
        assert [b - a for a, b in pairwise(offsets)] == sizes[:-1]
    assert model.layout.size_bytes - sum(4 * w.size for w in found.values()) < 3 * 4096


def test_a_layer_is_five_regions_as_of_any_family(folder):
    kernels = [region.kernel for region in fuse(open_model(folder).graph, "cache") if region.stage == "layers.1"]
    gate_up = "norm_gate_up_silu_mul"
    assert kernels == ["norm_qkv_rope_append", "attention", "linear_add", gate_up, "linear_add"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_stored_by_themselves_give_the_same_bits(backend, folder, tmp_path, make_backend):
    other = apart(folder, tmp_path / "apart")
    models = [open_model(folder), open_model(other)]
    assert models[0].key == models[1].key
    prompt = prompt_of(257)
    steppers = [Stepper(make_backend(backend, model)) for model in models]
    left, right = (stepper.feed((stepper.sequence(), prompt)) for stepper in steppers)
    np.testing.assert_array_equal(left, right)


def test_a_packed_folder_holds_the_parts(folder, tmp_path):
    """Packed row by row: what quantize writes is the same, whether the source joined or not."""
    files = []
    for name, source in (("a", folder), ("b", apart(folder, tmp_path / "apart"))):
        quantize_folder(source, tmp_path / name, Packing(DType.Q4, DType.Q8))
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert set(load_file(tmp_path / "a" / "model.safetensors")) == set(load_weights_f32(open_model(folder)))


def test_what_does_not_fit_is_named(folder):
    stored = load_file(folder / "model.safetensors")[QKV]
    change(folder, **{QKV: stored[:-1]})
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.self_attn\.qkv_proj\.weight has shape \[95, 48\] but config"
    ):
        open_model(folder)
    change(folder, **{QKV: stored[:, :-1].contiguous()})
    with pytest.raises(
        CheckpointError, match=r"qkv_proj\.weight has shape \[96, 47\] but config.json wants \[96, 48\]"
    ):
        open_model(folder)
    change(folder, **{QKV: None})
    with pytest.raises(
        CheckpointError, match=r"qkv_proj\.weight \[96, 48\] is missing; check that config\.json belongs"
    ):
        open_model(folder)


def test_both_at_once_are_refused(folder):
    parts = {
        name: torch.zeros(w.shape) for name, w in load_weights_f32(open_model(folder)).items() if ".1.mlp." in name
    }
    change(folder, **{name: zeros for name, zeros in parts.items() if "down" not in name})
    with pytest.raises(UnsupportedError, match=r"does not use: model\.layers\.1\.mlp\.gate_up_proj\.weight"):
        open_model(folder)

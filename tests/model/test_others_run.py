"""Weights that others quantised, packed anew or widened: they run as transformers runs the same numbers."""

import numpy as np
import torch
from safetensors.torch import load_file
from tests.model import others, tiny
from tests.model.runner import prompt_logits
from tests.model.theirs import prompt_of, relative_error, runs_as

from coterie.core.dtypes import DType
from coterie.core.packed import pack
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing
from coterie.models.repack import repack_folder


def test_with_zeros_it_runs_as_transformers_runs_the_same_numbers(folder_like, tmp_path, make_backend):
    folder = folder_like()
    model = tiny.load(folder)
    for name, exact in others.awq(folder, scales=torch.bfloat16).items():
        model.get_parameter(name).data = torch.tensor(exact).float()
    ours = open_model(repack_folder(folder, tmp_path / "out").folder)
    runs_as(model, ours, make_backend)


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
        error = relative_error(prompt_logits(make_backend(backend, model), prompt), truth)
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

"""gpt-oss: what is written of its checkpoints once, transposed or in MXFP4, and how that agrees with transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import mxfp4, theirs, tiny
from tests.model.runner import Stepper, chunks, prompt_logits

from coterie.checkpoint.safetensors import read_header
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.branches import branches_of
from coterie.models.families.gpt_oss import GPT_OSS
from coterie.models.fields import Fields
from coterie.models.model import load_weights_f32, open_model, with_activations
from coterie.models.packing import Packing
from coterie.models.quantised.methods import is_repacked
from coterie.models.quantised.mxfp4 import mxfp4_method
from coterie.models.repack import repack_folder

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # rows of whole groups
LONG = {"max_position_embeddings": 512, "sliding_window": 270, "num_hidden_layers": 2}
UP, DOWN = "model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def folder_like(tmp_path_factory):
    """A function (changes, type) -> a folder of the tiny gpt-oss, otherwise by these."""

    def get(changes, dtype="bf16"):
        tiny.FAMILY_ROWS["here"] = ("GptOss", {**tiny.FAMILY_ROWS["gpt-oss"][1], **changes})
        try:
            return tiny.save(tiny.make("here", "yarn-all"), tmp_path_factory.mktemp("gpt-oss"), dtype)
        finally:
            del tiny.FAMILY_ROWS["here"]

    return get


@pytest.fixture(scope="module")
def released(folder_like):
    """A folder in MXFP4, and what the matrices of its branches are worth."""
    folder = folder_like(WIDE)
    return folder, mxfp4.quantise(folder)


@pytest.fixture
def copied(released, tmp_path):
    """A folder in MXFP4 that a test may damage."""
    return shutil.copytree(released[0], tmp_path / "copied")


def check_parts(found, worth, of=lambda values: values):
    """Every branch's matrices are columns of what is stored, every other one of gate and up."""
    for name, stored in worth.items():
        place, last = name.rsplit(".", 1)
        for branch, values in enumerate(stored):
            parts = {"down_proj": values.T}
            if last == "gate_up_proj":
                parts = {"gate_proj": values.T[::2], "up_proj": values.T[1::2]}
            for part, wanted in parts.items():
                np.testing.assert_array_equal(found[f"{place}.{branch}.{part}.weight"], of(wanted), name)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_transposed_matrices_and_biases_keep_their_bits_and_type(dtype, folder_like, tmp_path):
    folder = folder_like({}, dtype)
    stored = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    assert is_repacked(folder)
    made = repack_folder(folder, tmp_path / "out")
    assert made.packing is None
    assert all(kind.rms_error == 0 for kind in made.kinds)
    assert not is_repacked(made.folder)
    model = open_model(made.folder)
    assert {value.dtype for value in model.graph.weights} == {DType.F32 if dtype == "fp32" else DType.BF16}
    found = load_weights_f32(model)
    check_parts(found, {name: values for name, values in stored.items() if name.endswith(tiny.TURNED)})
    biases = stored[f"{UP}_bias"]
    for part, wanted in {"gate": biases[:, ::2], "up": biases[:, 1::2], "down": stored[f"{DOWN}_bias"]}.items():
        np.testing.assert_array_equal(found[f"model.layers.1.mlp.experts.{part}_proj_bias"], wanted)


def test_mxfp4_is_kept_to_the_bit_and_agrees_with_transformers(released, make_backend, tmp_path):
    folder, worth = released
    made = repack_folder(folder, tmp_path / "out")
    assert (made.packing.layers, made.packing.tables) == (DType.MX4, None)
    assert all(kind.rms_error == 0 for kind in made.kinds)
    model = open_model(made.folder)
    check_parts(load_weights_f32(model), worth)
    said = theirs.ask(folder, "bf16")
    for activations, bound in (("int16", 1.0), ("int8", 3.0)):
        found = prompt_logits(make_backend("cpu", with_activations(model, activations)), said.prompt)
        assert theirs.typical_error(found, said.truth) <= bound * said.own_typical_error


@pytest.mark.parametrize("layers", [DType.BF16, DType.Q8, DType.Q4Z, DType.MX4])
def test_mxfp4_and_transposed_matrices_are_packed_anew_by_choice(layers, released, folder_like, tmp_path):
    folder, worth = released
    made = repack_folder(folder, tmp_path / "of-mxfp4", layers, DType.Q8 if layers.is_packed else None)
    found = load_weights_f32(open_model(made.folder))
    if layers in (DType.BF16, DType.MX4):
        check_parts(found, worth)
    of_branches = {kind.kind: kind for kind in made.kinds if "experts" in kind.kind}
    most = {DType.BF16: 0.0, DType.Q8: 0.008, DType.Q4Z: 0.08, DType.MX4: 0.0}[layers]
    assert all(kind.rms_error <= most for kind in of_branches.values())
    assert of_branches["mlp.experts.up_proj_bias"].dtype is DType.BF16
    plain = repack_folder(folder_like(WIDE, "fp32"), tmp_path / "of-floats", layers)
    model = open_model(plain.folder)
    assert model.graph.values["model.layers.1.mlp.experts.0.up_proj.weight"].dtype is layers
    assert model.graph.values["model.layers.1.mlp.experts.up_proj_bias"].dtype is DType.F32


def long_folder(folder_like):
    """A model whose windows and contexts are longer than a span of 256 positions, and what transformers says of it."""
    folder = folder_like(LONG, "fp32")
    prompt = [int(t) for t in np.random.default_rng(1).integers(0, 257, 305)]
    with torch.no_grad():
        truth = tiny.load(folder)(torch.tensor([prompt])).logits[0].numpy()
    return folder, prompt, truth


def test_contexts_of_several_spans(folder_like, make_backend):
    """A sink counts once, however many spans a context has; alone, in pieces and whole a token has the same bits."""
    folder, prompt, truth = long_folder(folder_like)
    model, found = open_model(tiny.expert(folder)), []
    for size in (305, 47):
        stepper = Stepper(make_backend("cpu", model))
        sequence = stepper.sequence()
        found.append(np.concatenate([stepper.feed((sequence, piece)) for piece in chunks(prompt, size)]))
    stepper = Stepper(make_backend("cpu", model))
    sequence = stepper.sequence()
    stepper.feed((sequence, prompt[:300]))
    alone = np.concatenate([stepper.feed((sequence, [token])) for token in prompt[300:]])
    assert theirs.relative_error(found[0], truth) <= 1e-4
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(alone, found[0][300:])


def refused(error, sentence, folder, out=None):
    with pytest.raises(error, match=sentence):
        open_model(folder) if out is None else repack_folder(folder, out)


def test_what_is_to_be_written_first_is_said(released, folder_of):
    sentence = r"gate_up_proj holds the matrices of its branches transposed.*; write an expert of them once: coterie"
    refused(UnsupportedError, sentence, folder_of("gpt-oss"))
    refused(UnsupportedError, r"of 'mxfp4' means quantised weights.*coterie quantize FOLDER OUT", released[0])


def change(folder, **tensors):
    whole = {**load_file(folder / "model.safetensors"), **tensors}
    kept = {name: tensor for name, tensor in whole.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


WRONG = {
    "no scales": ({f"{UP}_scales": None}, CheckpointError, "gate_up_proj_scales] is missing"),
    "scales of others": (
        {f"{DOWN}_scales": torch.zeros(5, 64, 2, dtype=torch.uint8)},
        CheckpointError,
        r"down_proj_scales.* U8 \[5, 64, 2\], where U8 \[5, 64, 3\] is expected",
    ),
    "no number": (
        {f"{DOWN}_scales": torch.full((5, 64, 3), 255, dtype=torch.uint8)},
        CheckpointError,
        "down_proj.* a weight is infinite or not a number",
    ),
    "blocks of others": (
        {f"{UP}_blocks": torch.zeros(5, 192, 3, 16, dtype=torch.uint8)},
        CheckpointError,
        r"gate_up_proj_blocks.* is U8 \[5, 192, 3, 16\]",
    ),
    "no biases": ({f"{UP}_bias": None}, CheckpointError, "gate_up_proj_bias] is missing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_damaged_folders_are_refused(wrong, copied, tmp_path):
    changes, error, sentence = WRONG[wrong]
    change(copied, **changes)
    refused(error, sentence, copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "clipped"), [({}, (1.702, 7.0)), ({"swiglu_alpha": 1.5, "swiglu_limit": 3.0}, (1.5, 3.0))]
)
def test_a_config_may_say_how_gates_are_clipped(said, clipped):
    assert GPT_OSS.branches is not None
    assert branches_of(Fields({"intermediate_size": 96, **said}, "config.json"), GPT_OSS.branches, 2).clipped == clipped


def test_groups_are_whole(released):
    """No model is known of which they are not, and nothing says where the last group of a row would end."""
    tensors, stem = read_header(released[0] / "model.safetensors"), f"{DOWN.removesuffix('down_proj')}0.down_proj"
    with pytest.raises(UnsupportedError, match=r"down_proj\] its 80 columns are no multiple of 32"):
        mxfp4_method(Fields({}, "config.json")).find(tensors, stem, 80)


def test_what_others_wrote_of_it_is_no_packing_of_ours(released, tmp_path):
    made = repack_folder(released[0], tmp_path / "out")
    section = json.loads((made.folder / "config.json").read_text())["quantization_config"]
    assert (section["quant_method"], section["layers"], section["tables"]) == ("coterie", "mxfp4", None)
    assert set(section["exceptions"].values()) == {None}
    biases = "model.layers.1.mlp.experts.up_proj_bias"
    assert Packing(DType.Q8, None).dtype_of(biases, (5, 96)) is None

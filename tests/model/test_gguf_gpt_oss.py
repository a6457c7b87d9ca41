"""GGUF files of gpt-oss: the expert that comes out is the one that `coterie quantize` makes of the folder."""

import importlib
import json

import numpy as np
import pytest
from tests.model.runner import ReferenceBackend, prompt_logits
from tests.model.theirs import prompt_of, relative_error

from coterie.core.dtypes import DType
from coterie.models.model import load_weights_f32, open_model
from coterie.models.repack import repack_folder

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model.gguf_files import imported  # noqa: E402

ROW = ("gpt-oss-usual", "not rounded")


def test_the_expert_is_the_one_that_quantize_writes(gguf_folder_like, two_tokens, tmp_path):
    folder = gguf_folder_like(*ROW, "bf16")
    before = open_model(repack_folder(folder, tmp_path / "repacked").folder)
    _, report, after = imported(folder, two_tokens, tmp_path, "BF16")
    assert after.key == before.key
    assert {found.lost.rms_error for found in report.kinds} == {0.0}
    wanted, found = load_weights_f32(before), load_weights_f32(after)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_mxfp4_stays_what_it_is(gguf_folder_like, two_tokens, tmp_path):
    def kind(name):
        return "MXFP4" if "_exps.weight" in name else "Q8_0" if "token_embd" in name or "output" in name else "F32"

    path, report, model = imported(gguf_folder_like(*ROW, "fp32"), two_tokens, tmp_path, kind)
    branches = [
        found.lost for found in report.kinds if ".experts." in found.lost.kind and "bias" not in found.lost.kind
    ]
    assert {(lost.dtype, lost.rms_error, lost.bits) for lost in branches} == {(DType.MX4, 0.0, 4.5)}
    found = load_weights_f32(model)
    for stored in gguf.GGUFReader(path).tensors:
        if "gate_exps.weight" in stored.name:
            values = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(-1, 96, 64)
            layer = stored.name.split(".")[1]
            for branch, wanted in enumerate(values):
                name = f"model.layers.{layer}.mlp.experts.{branch}.gate_proj.weight"
                np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize("kind", ["F32", "MXFP4"])
def test_logits_are_those_of_llama_cpp(kind, gguf_folder_like, two_tokens, tmp_path):
    """But that it rounds where yarn's frequencies begin to change, which the released config says not to.

    To meet MXFP4 it rounds activations to 8 bits, hence the wide bound.
    """
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    logits = importlib.import_module("tests.model.in_llama_cpp").logits
    path, report, _ = imported(
        gguf_folder_like(*ROW, "fp32"), two_tokens, tmp_path, lambda name: kind if "_exps.weight" in name else "F32"
    )
    config = json.loads((report.folder / "config.json").read_text())
    assert config["rope_scaling"].pop("truncate") is False
    (report.folder / "config.json").write_text(json.dumps(config))
    model = open_model(report.folder)
    prompt = prompt_of(model.config.vocab_size)
    ours, theirs = prompt_logits(ReferenceBackend(model), prompt), logits(path, prompt)
    assert relative_error(ours, theirs) < (5e-6 if kind == "F32" else 0.05)

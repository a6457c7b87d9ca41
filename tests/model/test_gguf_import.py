"""GGUF files of every imported architecture: the folder that comes out is the one that the file was made of."""

import importlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.model import tiny
from tests.model.gguf_rows import WIDE
from tests.model.runner import ReferenceBackend, prompt_logits
from tests.model.theirs import prompt_of, relative_error
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from coterie.checkpoint.folder import SINGLE
from coterie.models.gguf.config import generation_of
from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import load_weights_f32, open_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model import gguf_files  # noqa: E402
from tests.model.gguf_files import imported  # noqa: E402

CASES = [
    *(("llama", "default"), ("llama-biases", "llama3"), ("llama-tied", "linear"), ("llama-head20", "yarn")),
    *(
        ("mistral", "default"),
        ("mistral-full", "yarn-factor"),
        ("qwen2", "yarn"),
        ("qwen3", "default"),
        ("qwen3-bias", "default"),
    ),
    *(
        ("phi3-window", "default"),
        ("phi3-long", "longrope"),
        ("gemma-bias-tanh", "default"),
        ("gemma2-usual", "default"),
    ),
    *(("gemma3-usual", "linear"), ("smollm3-usual", "default"), ("granite-biases", "default")),
    *(
        ("olmo2", "default"),
        ("olmo3", "yarn"),
        ("olmo3-windows", "default"),
        ("exaone4", "default"),
        ("exaone4-usual", "default"),
    ),
    ("seed-oss", "default"),
    *(("mixtral", "default"), ("qwen2-moe", "default"), ("qwen3-moe", "yarn"), ("olmoe", "default")),
    ("olmoe-usual", "default"),
    *(("glm4", "default"), ("glm4-moe", "default"), ("glm4-moe-air", "yarn"), ("lfm2", "default")),
    *(("lfm2-first", "default"), ("lfm2-moe-usual", "default"), ("deepseek-v3", "default"), ("deepseek-v3", "mscale")),
    *(("deepseek-v2", "mscale"), ("deepseek-v2-groups", "default")),
]
# llama.cpp rounds gelu to a table of float16. It has no biases of Qwen3, no window of Mistral and Phi-3, no
# `attention_factor` of yarn, a window of EXAONE 4 in a model of 64 layers only, opens no OLMoE with fewer keys than
# queries, and ranks DeepSeek 2's groups as the third does.
RUNS = {case: 2e-3 if case[0].startswith("gemma") else 5e-6 for case in CASES}
UNLIKE = (
    ("qwen3-bias", "default"),
    ("mistral", "default"),
    ("phi3-window", "default"),
    ("mistral-full", "yarn-factor"),
    ("exaone4", "default"),
    ("olmoe", "default"),
    ("deepseek-v2-groups", "default"),
)
QUICK = (
    "llama-biases",
    "qwen3",
    "phi3-long",
    "gemma3-usual",
    "smollm3-usual",
    "granite-biases",
    "mixtral",
    "qwen2-moe",
    "lfm2",
    "deepseek-v3",
)
for unlike in UNLIKE:
    del RUNS[unlike]


@pytest.mark.parametrize(("row", "rope"), CASES)
def test_the_folder_is_the_one_that_the_file_was_made_of(row, rope, gguf_folder_like, two_tokens, tmp_path):
    """Every weight to the bit, in order of use, and a config of the same architecture: they share programs."""
    before = open_model(gguf_folder_like(row, rope))
    _, report, after = imported(before.path, two_tokens, tmp_path, "BF16")
    assert after.key == before.key
    assert (after.max_context, after.end_ids) == (before.max_context, before.end_ids)
    wanted, found = load_weights_f32(before), load_weights_f32(after)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    offsets = [after.checkpoint.tensors[value.name].offset for value in after.graph.weights]
    assert offsets == sorted(offsets)
    assert report.packing is None
    assert {found.lost.rms_error for found in report.kinds} == {0.0}
    assert sum(found.lost.num_weights for found in report.kinds) == sum(values.size for values in wanted.values())


@pytest.mark.parametrize(
    ("row", "rope"), [pytest.param(*case, marks=[] if case[0] in QUICK else pytest.mark.long) for case in RUNS]
)
def test_logits_are_those_of_llama_cpp(row, rope, gguf_folder_like, two_tokens, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    logits = importlib.import_module("tests.model.in_llama_cpp").logits
    path, _, model = imported(gguf_folder_like(row, rope, "fp32"), two_tokens, tmp_path, "F32")
    prompt = prompt_of(model.config.vocab_size)
    ours, theirs = prompt_logits(ReferenceBackend(model), prompt), logits(path, prompt)
    assert relative_error(ours, theirs) < RUNS[row, rope]


def test_a_file_in_parts_is_one(gguf_folder_like, two_tokens, tmp_path):
    folder = gguf_folder_like("qwen2")
    _, _, model = imported(folder, two_tokens, tmp_path, "BF16")
    gguf_files.write(folder, tmp_path / "parts.gguf", "BF16", split=10)
    parts = sorted(tmp_path.glob("parts-0*"))
    assert len(parts) > 2
    report = import_gguf(plan_import(parts[0]), tmp_path / "joined", two_tokens)
    assert (report.folder / SINGLE).read_bytes() == (model.path / SINGLE).read_bytes()
    assert report.before_bytes == sum(part.stat().st_size for part in parts)


def test_what_the_file_says_of_tokens_and_sampling_is_written(gguf_folder_like, two_tokens, tmp_path):
    def say(writer):
        writer.add_eot_token_id(9)
        writer.add_float32("general.sampling.temp", 0.7)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_float32("general.sampling.penalty_repeat", 1.1)
        writer.add_int32("general.sampling.penalty_last_n", 64)

    _, report, model = imported(gguf_folder_like("llama"), two_tokens, tmp_path, "BF16", change=say)
    assert model.end_ids == (2, 9)
    found = json.loads((report.folder / "generation_config.json").read_text())
    said = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    assert found == {"eos_token_id": [2, 9], "do_sample": True} | said
    assert model.advised.sampling.explicit == said


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, {}),
        ({"temp": 0.0, "top_k": 20}, {"temperature": 0.0, "top_k": 20}),
        ({"top_k": 64}, {"do_sample": True, "top_k": 64}),
        ({"penalty_repeat": 1.5}, {"repetition_penalty": 1.5}),
        ({"min_p": np.float32(0.05).item(), "xtc_threshold": 0.1}, {"do_sample": True, "min_p": 0.05}),
    ],
)
def test_sampling_is_said_as_transformers_says_it(said, wanted):
    assert generation_of({f"general.sampling.{key}": value for key, value in said.items()}) == wanted


@pytest.mark.long
@pytest.mark.parametrize(("row", "rope"), CASES)
def test_transformers_opens_the_folder_and_agrees(row, rope, gguf_folder_like, two_tokens, tmp_path):
    folder = gguf_folder_like(row, rope, "fp32")
    _, report, _ = imported(folder, two_tokens, tmp_path, "F32")
    before, after = tiny.load(folder), tiny.load(report.folder)
    prompt = torch.tensor([prompt_of(before.config.vocab_size)])
    with torch.no_grad():
        wanted, found = (model(prompt).logits[0].numpy() for model in (before, after))
    assert relative_error(found, wanted) < 2e-6


@pytest.mark.long
@pytest.mark.parametrize("row", ["llama", "qwen2", "qwen3", "phi3", "gemma2-usual"])
def test_transformers_reads_the_same_weights_from_the_file(row, gguf_folder_like, two_tokens, tmp_path):
    """A second reader of the format, where it knows the architecture."""
    folder = gguf_folder_like(row, **WIDE)
    path, report, _ = imported(folder, two_tokens, tmp_path, "Q8_0", "bf16", change=lambda w: w.add_name("tiny"))
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=tiny.load(folder))["tensors"]
    ours = load_file(report.folder / SINGLE)
    assert theirs.keys() == ours.keys()
    for name, values in ours.items():
        torch.testing.assert_close(values.float(), theirs[name].float(), rtol=2.0**-8, atol=1e-6)

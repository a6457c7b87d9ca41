"""GGUF files of every imported architecture: the folder that comes out is the one that the file was made of."""

import importlib
import json

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from tests.model import tiny
from tests.model.runner import DeviceBackend, ReferenceBackend, Stepper, prompt_logits
from tests.model.theirs import prompt_of, relative_error
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from coterie.checkpoint.folder import SINGLE
from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.errors import CheckpointError
from coterie.devices.cpu.device import CpuDevice
from coterie.models.gguf.config import generation_of
from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model import gguf_files  # noqa: E402

FULL, SLIDING = "full_attention", "sliding_attention"
# What a file does not say is what llama.cpp takes for granted: the scale of queries by head, windows by pattern.
OWN = {
    "gemma2-usual": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3-usual": (
        "gemma3",
        {"query_pre_attn_scalar": 16, "num_hidden_layers": 6, "layer_types": [SLIDING] * 5 + [FULL]},
    ),
    "smollm3-usual": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "phi3-long": ("phi3-partial", {"max_position_embeddings": 1024, "original_max_position_embeddings": 512}),
    "olmo3-windows": ("olmo3", {"layer_types": [SLIDING] * 3}),
    "exaone4-usual": ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 3}),
    "qwen2-moe": ("qwen2-moe", {"mlp_only_layers": []}),
    "olmoe-usual": ("olmoe", {"num_key_value_heads": 4}),
}
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
]
OWN["gemma-bias-tanh"] = ("gemma", {})
ROPES = {
    "olmo3": {"rope_theta": 700.0},
    "olmo3-windows": {"rope_theta": 700.0},
    "phi3-long": {"original_max_position_embeddings": 512},
}
# llama.cpp rounds gelu to a table of float16. It has no biases of Qwen3, no window of Mistral and Phi-3, no
# `attention_factor` of yarn, a window of EXAONE 4 in a model of 64 layers only, and opens no OLMoE with fewer keys than
# queries.
RUNS = {case: 2e-3 if case[0].startswith("gemma") else 5e-6 for case in CASES}
UNLIKE = (
    ("qwen3-bias", "default"),
    ("mistral", "default"),
    ("phi3-window", "default"),
    ("mistral-full", "yarn-factor"),
    ("exaone4", "default"),
    ("olmoe", "default"),
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
)
for unlike in UNLIKE:
    del RUNS[unlike]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer.json of two tokens."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path))
    return path


@pytest.fixture(scope="module")
def folder_like(tmp_path_factory):
    """A function (row or one of OWN, rope, type) -> a tiny folder of it."""

    def get(row, rope="default", dtype="bf16", **sizes):
        base, changes = OWN.get(row, (row, {}))
        class_name, own = tiny.FAMILY_ROWS[base]
        usual = tiny.ROPES[rope]
        tiny.FAMILY_ROWS["here"] = (class_name, {**own, **changes, **sizes})
        tiny.ROPES[rope] = {**usual, **ROPES.get(row, {})}
        try:
            return tiny.save(tiny.make("here", rope), tmp_path_factory.mktemp(f"{row}-{rope}"), dtype)
        finally:
            tiny.ROPES[rope] = usual
            del tiny.FAMILY_ROWS["here"]

    return get


def imported(folder, tokenizer, tmp_path, kind, weights="keep", **how):
    """The file of a folder, what importing it reported, and the model that came out."""
    path = gguf_files.write(folder, tmp_path / f"{kind}.gguf", kind, **how)
    report = import_gguf(plan_import(path, weights), tmp_path / f"{kind}-{weights}", tokenizer)
    return path, report, open_model(report.folder)


@pytest.mark.parametrize(("row", "rope"), CASES)
def test_the_folder_is_the_one_that_the_file_was_made_of(row, rope, folder_like, tokenizer, tmp_path):
    """Every weight to the bit, in order of use, and a config of the same architecture: they share programs."""
    before = open_model(folder_like(row, rope))
    _, report, after = imported(before.path, tokenizer, tmp_path, "BF16")
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
def test_logits_are_those_of_llama_cpp(row, rope, folder_like, tokenizer, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    logits = importlib.import_module("tests.model.in_llama_cpp").logits
    path, _, model = imported(folder_like(row, rope, "fp32"), tokenizer, tmp_path, "F32")
    prompt = prompt_of(model.config.vocab_size)
    ours, theirs = prompt_logits(ReferenceBackend(model), prompt), logits(path, prompt)
    assert relative_error(ours, theirs) < RUNS[row, rope]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("row", ["llama-biases", "phi3", "gemma"])
def test_other_unquantised_types_stay(row, dtype, folder_like, tokenizer, tmp_path):
    """Norms of Gemma are stored plus 1 in float32, which loses what is below its last bit."""
    before = open_model(folder_like(row, dtype=dtype))
    _, _, after = imported(before.path, tokenizer, tmp_path, {"fp32": "F32", "fp16": "F16"}[dtype])
    assert after.key == before.key
    wanted, found = load_weights_f32(before), load_weights_f32(after)
    for name, values in wanted.items():
        atol = 2.0**-24 if row == "gemma" and "norm" in name else 0
        np.testing.assert_allclose(found[name], values, rtol=0, atol=atol, err_msg=name)


def test_norms_that_are_no_bfloat16_numbers_stay_float32(folder_like, tokenizer, tmp_path):
    """Beside matrices of bfloat16: nothing of the file is rounded."""
    before = open_model(folder_like("llama", dtype="fp32"))
    _, _, after = imported(before.path, tokenizer, tmp_path, "BF16")
    dtypes = {name: after.checkpoint.tensors[name].dtype for name in load_weights_f32(after)}
    assert {dtype for name, dtype in dtypes.items() if "norm" in name} == {DType.F32}
    assert {dtype for name, dtype in dtypes.items() if "norm" not in name} == {DType.BF16}
    backend = DeviceBackend(CpuDevice(threads=1), after)
    stepper, reference = Stepper(backend), Stepper(ReferenceBackend(after))
    prompt = prompt_of(after.config.vocab_size)
    ours = stepper.feed((stepper.sequence(), prompt))
    assert relative_error(ours, reference.feed((reference.sequence(), prompt))) < 1e-5
    backend.close()


WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # rows of whole blocks


@pytest.mark.parametrize(("row", "dtype"), [("llama-biases", "fp32"), ("phi3", "fp32"), ("gemma2-usual", "bf16")])
def test_whole_numbers_of_q4_0_stay(row, dtype, folder_like, tokenizer, tmp_path):
    """Only the scales are rounded, from float16 to bfloat16: by 2^-8 at most.

    A scale is an eighth of the largest weight of its block, so that of bfloat16 weights is a bfloat16 number already.
    """
    kind = {"token_embd.weight": "Q8_0", "output.weight": "Q8_0"}
    folder = folder_like(row, dtype=dtype, **WIDE)
    path, report, model = imported(folder, tokenizer, tmp_path, lambda name: kind.get(name, "Q4_0"))
    assert report.packing == Packing(DType.Q4, DType.Q8)
    after = load_weights_f32(model)
    for name, source in plan_import(path).sources.items():
        if source.tensor.type == "Q4_0":
            values = source.values(0, source.shape[0])
            np.testing.assert_allclose(after[name], values, rtol=2.0**-8, atol=0, err_msg=name)
    losses = {found.lost.kind: found for found in report.kinds}
    assert losses["mlp.down_proj"].found == ("Q4_0",)
    lost = losses["mlp.down_proj"].lost.rms_error
    assert (lost == 0.0) if dtype == "bf16" else (0 < lost < 2.0**-8), lost
    assert losses["embed_tokens"].found == ("Q8_0",)
    assert losses["embed_tokens"].lost.dtype is DType.Q8


def test_codes_of_q4_1_stay(folder_like, tokenizer, tmp_path):
    """Beside int8 for what has 8 bits; of scales and zeros what bfloat16 does not hold is lost."""
    kind = {"output.weight": "Q8_0", "blk.1.ffn_down.weight": "Q8_0"}
    folder = folder_like("llama-biases", dtype="fp32", **WIDE)
    _, report, _ = imported(folder, tokenizer, tmp_path, lambda name: kind.get(name, "Q4_1"))
    odd = dict.fromkeys(("model.layers.1.mlp.down_proj.weight", "lm_head.weight"), DType.Q8)
    assert report.packing == Packing(DType.Q4Z, DType.Q4Z, odd)
    downs = [found for found in report.kinds if found.lost.kind == "mlp.down_proj"]
    assert [(one.found, one.lost.dtype) for one in downs] == [(("Q4_1",), DType.Q4Z), (("Q8_0",), DType.Q8)]
    kept = [found.lost for found in report.kinds if found.lost.dtype is DType.Q4Z]
    assert {lost.bits for lost in kept} == {5.0}
    assert all(0 < lost.rms_error < 0.005 for lost in kept)


@pytest.mark.parametrize(("kind", "weights"), [("Q8_0", "keep"), ("Q5_1", "keep"), ("Q5_0", "keep8")])
def test_other_quantised_types_become_int8(kind, weights, folder_like, tokenizer, tmp_path):
    """What is added is reported, and less than a hundredth of the weights; answers are llama.cpp's within that."""
    path, report, model = imported(folder_like("qwen3", **WIDE), tokenizer, tmp_path, kind, weights)
    assert report.packing == Packing(DType.Q8, DType.Q8)
    job, after = plan_import(path), load_weights_f32(model)
    for found in report.kinds:
        if found.lost.dtype is not DType.Q8:
            assert found.lost.rms_error == 0.0
            continue
        names = [name for name in after if found.lost.kind in name]
        before = [job.sources[name].values(0, after[name].shape[0]) for name in names]
        lost = np.concatenate([(after[n] - b).ravel() for n, b in zip(names, before, strict=True)])
        scale = np.sqrt(np.mean(np.concatenate([b.ravel() for b in before]).astype(np.float64) ** 2))
        assert found.lost.rms_error == pytest.approx(np.sqrt(np.mean(lost.astype(np.float64) ** 2)) / scale, rel=1e-5)
        assert 0 < found.lost.rms_error < 0.01


def test_branches_become_int8_and_what_chooses_them_stays(folder_like, tokenizer, tmp_path):
    """Each branch's matrices are rows of one tensor: the second one's are its own."""
    folder = folder_like("qwen2-moe", **WIDE, moe_intermediate_size=32, shared_expert_intermediate_size=64)
    _, report, model = imported(folder, tokenizer, tmp_path, lambda name: "F32" if "inp" in name else "Q8_0")
    assert {kind.lost.dtype for kind in report.kinds if "mlp.experts" in kind.lost.kind} == {DType.Q8}
    before, after = load_weights_f32(open_model(folder)), load_weights_f32(model)
    for name, values in before.items():
        chooses = "mlp.gate.weight" in name or "shared_expert_gate" in name
        assert relative_error(after[name], values) <= (0.0 if chooses or "norm" in name else 1 / 127), (
            name
        )  # half a step, twice


# Types of the matrices, and how far logits are from llama.cpp's by what they add: measured 0.03 to 0.045 of int8,
# 0.011 of int6.
FILES = {
    **dict.fromkeys(("Q5_K_M", "IQ4_XS", "IQ4_NL", "Q2_K"), ({DType.Q8, DType.Q6}, 0.05)),
    **{"MXFP4_MOE": ({DType.Q8}, 0.05), "Q6_K": ({DType.Q6}, 0.015)},
    **{"Q4_K_M": ({DType.Q6, DType.Q4Z}, 0.04), "Q4_K_S": ({DType.Q8, DType.Q6, DType.Q4Z}, 0.04)},
    "Q3_K_M": ({DType.Q8, DType.Q6, DType.Q4Z}, 0.05),
    "TQ2_0": ({DType.Q6, DType.Q4Z, DType.Q4}, 0.02),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "Q4_K_M" else pytest.mark.long) for kind in FILES]
)
def test_files_that_llama_cpp_quantised_are_read_as_there(kind, folder_like, tokenizer, tmp_path, make_backend):
    """Every kind of block: llama.cpp's own float32 numbers of it, and its answers with these, but for what is added."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    there = importlib.import_module("tests.model.in_llama_cpp")
    folder = folder_like("llama", dtype="fp32", hidden_size=256, intermediate_size=512, head_dim=64)
    path = gguf_files.write(folder, tmp_path / "whole.gguf", "F32")
    small = there.quantised(path, tmp_path / "small.gguf", f"MOSTLY_{kind}")
    again = there.quantised(small, tmp_path / "again.gguf", "ALL_F32")
    job, wanted = plan_import(small), plan_import(again).sources
    for name, source in job.sources.items():
        theirs = wanted[name].values(0, source.shape[0])
        np.testing.assert_allclose(source.values(0, source.shape[0]), theirs, rtol=1e-6, atol=1e-9, err_msg=name)
    report = import_gguf(job, tmp_path / "out", tokenizer)
    packed = [found.lost for found in report.kinds if found.lost.dtype.is_packed]
    types, most = FILES[kind]
    assert {lost.dtype for lost in packed} == types
    assert all(0 < lost.rms_error < (0.01 if lost.dtype is DType.Q8 else 0.005) for lost in packed)
    model = open_model(report.folder)
    prompt = prompt_of(model.config.vocab_size)
    theirs = there.logits(again, prompt)
    for backend in ("reference", "cpu"):
        assert relative_error(prompt_logits(make_backend(backend, model), prompt), theirs) < most


@pytest.mark.parametrize(
    ("weights", "layers"), [("bf16", None), ("int8", DType.Q8), ("int4", DType.Q4), ("int4z", DType.Q4Z)]
)
def test_weights_can_be_chosen(weights, layers, folder_like, tokenizer, tmp_path):
    folder = folder_like("phi3", dtype="fp32")
    _, report, model = imported(folder, tokenizer, tmp_path, "F32", weights)
    assert report.packing == (layers and Packing(layers, DType.Q8))
    before, after = load_weights_f32(open_model(folder)), load_weights_f32(model)
    for name, values in before.items():
        if values.ndim == 1 or weights == "bf16":
            kept = to_f32(from_f32(values, DType.BF16), DType.BF16) if weights == "bf16" else values
            np.testing.assert_array_equal(after[name], kept)
        else:
            assert (
                np.abs(after[name] - values).max()
                < {"int8": 0.01, "int4": 0.2, "int4z": 0.15}[weights] * np.abs(values).max()
            )


def test_what_is_not_quantised_stays_beside_what_is(folder_like, tokenizer, tmp_path):
    kinds = {"token_embd.weight": "F16", "blk.1.ffn_up.weight": "BF16"}
    _, report, model = imported(folder_like("qwen2", **WIDE), tokenizer, tmp_path, lambda name: kinds.get(name, "Q8_0"))
    up = "model.layers.1.mlp.up_proj.weight"
    assert report.packing == Packing(DType.Q8, None, {"lm_head.weight": DType.Q8, up: None})
    tensors = model.checkpoint.tensors
    assert tensors["model.embed_tokens.weight"].dtype is DType.F16
    assert tensors["lm_head.weight"].dtype is DType.U8
    assert tensors[up].dtype is DType.BF16


@pytest.mark.parametrize(("kind", "words"), [("Q4_0", "1 of [0-9]+ scales"), ("Q8_0", "infinite or not a number")])
def test_blocks_that_are_no_numbers_are_refused_in_a_sentence(kind, words, folder_like, tokenizer, tmp_path):
    path = gguf_files.write(folder_like("qwen2", **WIDE), tmp_path / "file.gguf", kind)
    job = plan_import(path)
    blocks = job.sources["model.layers.0.mlp.up_proj.weight"].tensor
    offset = path.read_bytes().find(blocks.rows.tobytes())
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = np.array([np.inf], np.float16).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        import_gguf(plan_import(path), tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_file_in_parts_is_one(folder_like, tokenizer, tmp_path):
    folder = folder_like("qwen2")
    _, _, model = imported(folder, tokenizer, tmp_path, "BF16")
    gguf_files.write(folder, tmp_path / "parts.gguf", "BF16", split=10)
    parts = sorted(tmp_path.glob("parts-0*"))
    assert len(parts) > 2
    report = import_gguf(plan_import(parts[0]), tmp_path / "joined", tokenizer)
    assert (report.folder / SINGLE).read_bytes() == (model.path / SINGLE).read_bytes()
    assert report.before_bytes == sum(part.stat().st_size for part in parts)


def test_what_the_file_says_of_tokens_and_sampling_is_written(folder_like, tokenizer, tmp_path):
    def say(writer):
        writer.add_eot_token_id(9)
        writer.add_float32("general.sampling.temp", 0.7)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_float32("general.sampling.penalty_repeat", 1.1)
        writer.add_int32("general.sampling.penalty_last_n", 64)

    _, report, model = imported(folder_like("llama"), tokenizer, tmp_path, "BF16", change=say)
    assert model.end_ids == (2, 9)
    found = json.loads((report.folder / "generation_config.json").read_text())
    said = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    assert found == {"eos_token_id": [2, 9], "do_sample": True} | said
    assert model.advised.sampling.said == said


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
def test_transformers_opens_the_folder_and_agrees(row, rope, folder_like, tokenizer, tmp_path):
    folder = folder_like(row, rope, "fp32")
    _, report, _ = imported(folder, tokenizer, tmp_path, "F32")
    before, after = tiny.load(folder), tiny.load(report.folder)
    prompt = torch.tensor([prompt_of(before.config.vocab_size)])
    with torch.no_grad():
        wanted, found = (model(prompt).logits[0].numpy() for model in (before, after))
    assert relative_error(found, wanted) < 2e-6


@pytest.mark.long
@pytest.mark.parametrize("row", ["llama", "qwen2", "qwen3", "phi3", "gemma2-usual"])
def test_transformers_reads_the_same_weights_from_the_file(row, folder_like, tokenizer, tmp_path):
    """A second reader of the format, where it knows the architecture."""
    folder = folder_like(row, **WIDE)
    path, report, _ = imported(folder, tokenizer, tmp_path, "Q8_0", "bf16", change=lambda w: w.add_name("tiny"))
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=tiny.load(folder))["tensors"]
    ours = load_file(report.folder / SINGLE)
    assert theirs.keys() == ours.keys()
    for name, values in ours.items():
        torch.testing.assert_close(values.float(), theirs[name].float(), rtol=2.0**-8, atol=1e-6)

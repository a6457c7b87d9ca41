"""Types of weights in GGUF files: which stay as they are, what others become, and how near logits are."""

import importlib

import numpy as np
import pytest
from tests.model.gguf_rows import WIDE
from tests.model.runner import DeviceBackend, ReferenceBackend, Stepper, prompt_logits
from tests.model.theirs import prompt_of, relative_error

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.errors import CheckpointError
from coterie.devices.cpu.device import CpuDevice
from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model import gguf_files  # noqa: E402
from tests.model.gguf_files import imported  # noqa: E402


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("row", ["llama-biases", "phi3", "gemma"])
def test_other_unquantised_types_stay(row, dtype, gguf_folder_like, two_tokens, tmp_path):
    """Norms of Gemma are stored plus 1 in float32, which loses what is below its last bit."""
    before = open_model(gguf_folder_like(row, dtype=dtype))
    _, _, after = imported(before.path, two_tokens, tmp_path, {"fp32": "F32", "fp16": "F16"}[dtype])
    assert after.key == before.key
    wanted, found = load_weights_f32(before), load_weights_f32(after)
    for name, values in wanted.items():
        atol = 2.0**-24 if row == "gemma" and "norm" in name else 0
        np.testing.assert_allclose(found[name], values, rtol=0, atol=atol, err_msg=name)


def test_norms_that_are_no_bfloat16_numbers_stay_float32(gguf_folder_like, two_tokens, tmp_path):
    """Beside matrices of bfloat16: nothing of the file is rounded."""
    before = open_model(gguf_folder_like("llama", dtype="fp32"))
    _, _, after = imported(before.path, two_tokens, tmp_path, "BF16")
    dtypes = {name: after.checkpoint.tensors[name].dtype for name in load_weights_f32(after)}
    assert {dtype for name, dtype in dtypes.items() if "norm" in name} == {DType.F32}
    assert {dtype for name, dtype in dtypes.items() if "norm" not in name} == {DType.BF16}
    backend = DeviceBackend(CpuDevice(threads=1), after)
    stepper, reference = Stepper(backend), Stepper(ReferenceBackend(after))
    prompt = prompt_of(after.config.vocab_size)
    ours = stepper.feed((stepper.sequence(), prompt))
    assert relative_error(ours, reference.feed((reference.sequence(), prompt))) < 1e-5
    backend.close()


@pytest.mark.parametrize(("row", "dtype"), [("llama-biases", "fp32"), ("phi3", "fp32"), ("gemma2-usual", "bf16")])
def test_whole_numbers_of_q4_0_stay(row, dtype, gguf_folder_like, two_tokens, tmp_path):
    """Only the scales are rounded, from float16 to bfloat16: by 2^-8 at most.

    A scale is an eighth of the largest weight of its block, so that of bfloat16 weights is a bfloat16 number already.
    """
    kind = {"token_embd.weight": "Q8_0", "output.weight": "Q8_0"}
    folder = gguf_folder_like(row, dtype=dtype, **WIDE)
    path, report, model = imported(folder, two_tokens, tmp_path, lambda name: kind.get(name, "Q4_0"))
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


def test_codes_of_q4_1_stay(gguf_folder_like, two_tokens, tmp_path):
    """Beside int8 for what has 8 bits; of scales and zeros what bfloat16 does not hold is lost."""
    kind = {"output.weight": "Q8_0", "blk.1.ffn_down.weight": "Q8_0"}
    folder = gguf_folder_like("llama-biases", dtype="fp32", **WIDE)
    _, report, _ = imported(folder, two_tokens, tmp_path, lambda name: kind.get(name, "Q4_1"))
    odd = dict.fromkeys(("model.layers.1.mlp.down_proj.weight", "lm_head.weight"), DType.Q8)
    assert report.packing == Packing(DType.Q4Z, DType.Q4Z, odd)
    downs = [found for found in report.kinds if found.lost.kind == "mlp.down_proj"]
    assert [(one.found, one.lost.dtype) for one in downs] == [(("Q4_1",), DType.Q4Z), (("Q8_0",), DType.Q8)]
    kept = [found.lost for found in report.kinds if found.lost.dtype is DType.Q4Z]
    assert {lost.bits for lost in kept} == {5.0}
    assert all(0 < lost.rms_error < 0.005 for lost in kept)


@pytest.mark.parametrize(("kind", "weights"), [("Q8_0", "keep"), ("Q5_1", "keep"), ("Q5_0", "keep8")])
def test_other_quantised_types_become_int8(kind, weights, gguf_folder_like, two_tokens, tmp_path):
    """What is added is reported, and less than a hundredth of the weights; answers are llama.cpp's within that."""
    path, report, model = imported(gguf_folder_like("qwen3", **WIDE), two_tokens, tmp_path, kind, weights)
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


def test_branches_become_int8_and_what_chooses_them_stays(gguf_folder_like, two_tokens, tmp_path):
    """Each branch's matrices are rows of one tensor: the second one's are its own."""
    folder = gguf_folder_like("qwen2-moe", **WIDE, moe_intermediate_size=32, shared_expert_intermediate_size=64)
    _, report, model = imported(folder, two_tokens, tmp_path, lambda name: "F32" if "inp" in name else "Q8_0")
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
def test_files_that_llama_cpp_quantised_are_read_as_there(kind, gguf_folder_like, two_tokens, tmp_path, make_backend):
    """Every kind of block: llama.cpp's own float32 numbers of it, and its answers with these, but for what is added."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install 'coterie[peers]'")
    there = importlib.import_module("tests.model.in_llama_cpp")
    folder = gguf_folder_like("llama", dtype="fp32", hidden_size=256, intermediate_size=512, head_dim=64)
    path = gguf_files.write(folder, tmp_path / "whole.gguf", "F32")
    small = there.quantised(path, tmp_path / "small.gguf", f"MOSTLY_{kind}")
    again = there.quantised(small, tmp_path / "again.gguf", "ALL_F32")
    job, wanted = plan_import(small), plan_import(again).sources
    for name, source in job.sources.items():
        theirs = wanted[name].values(0, source.shape[0])
        np.testing.assert_allclose(source.values(0, source.shape[0]), theirs, rtol=1e-6, atol=1e-9, err_msg=name)
    report = import_gguf(job, tmp_path / "out", two_tokens)
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
def test_weights_can_be_chosen(weights, layers, gguf_folder_like, two_tokens, tmp_path):
    folder = gguf_folder_like("phi3", dtype="fp32")
    _, report, model = imported(folder, two_tokens, tmp_path, "F32", weights)
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


def test_what_is_not_quantised_stays_beside_what_is(gguf_folder_like, two_tokens, tmp_path):
    kinds = {"token_embd.weight": "F16", "blk.1.ffn_up.weight": "BF16"}
    _, report, model = imported(
        gguf_folder_like("qwen2", **WIDE), two_tokens, tmp_path, lambda name: kinds.get(name, "Q8_0")
    )
    up = "model.layers.1.mlp.up_proj.weight"
    assert report.packing == Packing(DType.Q8, None, {"lm_head.weight": DType.Q8, up: None})
    tensors = model.checkpoint.tensors
    assert tensors["model.embed_tokens.weight"].dtype is DType.F16
    assert tensors["lm_head.weight"].dtype is DType.U8
    assert tensors[up].dtype is DType.BF16


@pytest.mark.parametrize(("kind", "words"), [("Q4_0", "1 of [0-9]+ scales"), ("Q8_0", "infinite or not a number")])
def test_blocks_that_are_no_numbers_are_refused_in_a_sentence(kind, words, gguf_folder_like, two_tokens, tmp_path):
    path = gguf_files.write(gguf_folder_like("qwen2", **WIDE), tmp_path / "file.gguf", kind)
    job = plan_import(path)
    blocks = job.sources["model.layers.0.mlp.up_proj.weight"].tensor
    offset = path.read_bytes().find(blocks.rows.tobytes())
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = np.array([np.inf], np.float16).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        import_gguf(plan_import(path), tmp_path / "out", two_tokens)
    assert not (tmp_path / "out").exists()

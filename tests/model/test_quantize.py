"""Experts with packed weights, from folder to tokens: what is written, that others can read it, and that it runs."""

import json
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.model import tiny
from tests.model.runner import BACKENDS, Stepper, chunks, prompt_logits
from tests.model.theirs import as_met, most_lost, prompt_of, relative_error

from coterie.checkpoint.folder import CONFIG, SINGLE
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.core.packed import pack, unpack
from coterie.graph.rounding import with_rounding
from coterie.graph.verify import verify
from coterie.kernels.cpu import ISAS
from coterie.models.model import ACTIVATIONS, load_weights_f32, open_model, synthetic_model, with_activations
from coterie.models.packing import KEY, Packing, packing_of
from coterie.models.quantize import quantize_folder

PACKINGS = {
    "8": Packing(DType.Q8, DType.Q8),
    "4": Packing(DType.Q4, DType.Q8),
    "4 all": Packing(DType.Q4, DType.Q4),
    "4 but embedding": Packing(DType.Q4, None),
    "4z": Packing(DType.Q4Z, DType.Q4Z),
    "6": Packing(DType.Q6, DType.Q6),
}
ROWS = ["llama", "llama-biases", "qwen2-types", "qwen3", "llama-head80", "olmo2", "phi3-partial", "granite"]
ROWS += ["gemma", "gemma2", "gemma3"]


@pytest.fixture(params=PACKINGS)
def packing(request):
    return PACKINGS[request.param]


@pytest.fixture
def made(folder_of, packing, tmp_path):
    """A quantised expert, the one it was made from, and what quantize reported."""
    result = quantize_folder(folder_of("llama", dtype="bf16"), tmp_path / "out", packing)
    return open_model(tmp_path / "out"), open_model(folder_of("llama", dtype="bf16")), result


def test_the_folder_is_ordinary_and_whole(made, packing):
    ours, source, result = made
    assert {f.name for f in source.path.iterdir()} == {f.name for f in ours.path.iterdir()}
    config = json.loads((ours.path / CONFIG).read_text())
    section = config.pop(KEY)
    assert config == json.loads((source.path / CONFIG).read_text())
    assert section == packing.to_config()
    assert packing_of({KEY: section}, "") == packing
    assert result.after_bytes == (ours.path / SINGLE).stat().st_size < result.before_bytes


def test_others_read_the_file(made, packing):
    """The safetensors library opens it; every tensor is the packed source, norms untouched."""
    ours, source, _ = made
    theirs, weights = load_file(ours.path / SINGLE), load_weights_f32(source)
    assert theirs.keys() == weights.keys()
    for name, wanted in weights.items():
        dtype = packing.dtype_of(name, wanted.shape)
        if dtype:
            np.testing.assert_array_equal(theirs[name].numpy(), pack(wanted, dtype))
        else:
            np.testing.assert_array_equal(theirs[name].float().numpy(), wanted)


def test_tensors_follow_in_order_of_execution(made):
    ours, _, _ = made
    offsets = [ours.checkpoint.tensors[value.name].offset for value in ours.graph.weights]
    assert offsets == sorted(offsets)
    assert offsets[0] % 64 == 0
    stages = [placed.stage for placed in ours.layout.ranges]
    assert stages == sorted(set(stages), key=stages.index)


def test_the_reported_errors_are_those_of_the_file(made):
    ours, source, result = made
    before, after = load_weights_f32(source), load_weights_f32(ours)
    for row in result.kinds:
        names = [n for n in before if row.kind in n]
        lost = np.concatenate([(after[n] - before[n]).ravel() for n in names]).astype(np.float64)
        rms = np.sqrt(np.mean(np.concatenate([before[n].ravel() for n in names]).astype(np.float64) ** 2))
        assert row.rms_error == pytest.approx(np.sqrt(np.mean(lost**2)) / rms, rel=1e-4)
        assert row.max_error == pytest.approx(np.abs(lost).max() / rms, rel=1e-4)
        assert row.num_tensors == len(names)


def test_equal_packings_share_a_key_and_others_do_not(folder_of, tmp_path):
    keys = [open_model(folder_of("llama", dtype="bf16")).key]
    for name, packing in PACKINGS.items():
        keys.append(open_model(quantize_folder(folder_of("llama", dtype="bf16"), tmp_path / name, packing).folder).key)
    assert len(set(keys)) == len(keys)
    again = quantize_folder(folder_of("llama", dtype="bf16", seed=1), tmp_path / "again", PACKINGS["8"])
    assert open_model(again.folder).key == keys[1]


def test_a_config_alone_has_the_size_of_the_folder(made):
    ours, _, _ = made
    alone = synthetic_model(json.loads((ours.path / CONFIG).read_text()))
    assert alone.key == ours.key
    stored = sum(ours.checkpoint.tensors[v.name].size_bytes for v in ours.graph.weights)
    assert alone.layout.size_bytes == -(-stored // 4096) * 4096


def test_shards_become_one_file(folder_of, tmp_path):
    tiny.save(tiny.make("llama"), tmp_path / "shards", max_shard_size="60KB")
    ours = open_model(quantize_folder(tmp_path / "shards", tmp_path / "out", PACKINGS["8"]).folder)
    whole = open_model(quantize_folder(folder_of("llama"), tmp_path / "whole", PACKINGS["8"]).folder)
    assert [p.name for p in ours.path.glob("*.safetensors*")] == [SINGLE]
    assert (ours.path / SINGLE).read_bytes() == (whole.path / SINGLE).read_bytes()


BRANCHED = [
    ("ernie-moe", "4"),
    ("qwen2-moe", "6"),
    ("qwen2-moe", "8"),
    ("glm4-moe", "4z"),
    ("dots1", "8"),
    ("granitemoeshared", "4z"),
]
LATER = [pytest.param(*case, marks=pytest.mark.long) for case in BRANCHED[1:]]


@pytest.mark.parametrize(
    ("row", "bits"), [*product(ROWS, ["8", "4"]), ("llama-biases", "4z"), ("qwen3", "6"), BRANCHED[0], *LATER]
)
def test_it_runs_like_the_reference(row, bits, folder_of, tmp_path, make_backend):
    """Float32 norms, so keys and values are float32 too; activations are rounded in the reference as on a CPU."""
    model = open_model(quantize_folder(folder_of(row), tmp_path / "out", PACKINGS[bits]).folder)
    prompt = prompt_of(model.config.vocab_size)
    logits, drawn = {}, {}
    for backend in BACKENDS:
        stepper = Stepper(make_backend(backend, as_met(model) if backend == "reference" else model))
        logits[backend] = stepper.feed((stepper.sequence(), prompt))
        drawn[backend] = stepper.greedy(prompt[:9], 8)
    first, *others = BACKENDS
    for other in others:
        assert relative_error(logits[other], logits[first]) <= most_lost(model)
        assert drawn[other] == drawn[first]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", ["8", "4", "4 all"])
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_one_answer_however_it_is_stepped(bits, isa, activations, folder_of, tmp_path, make_backend):
    packed = open_model(quantize_folder(folder_of("qwen3", dtype="bf16"), tmp_path / "out", PACKINGS[bits]).folder)
    model = with_activations(packed, activations)
    prompt = prompt_of(model.config.vocab_size)
    stepper = Stepper(make_backend("cpu", model, isa=isa))
    whole = stepper.feed((stepper.sequence(), prompt))
    for size in (1, 5, 16):
        sequence = stepper.sequence()
        pieces = [stepper.feed((sequence, piece)) for piece in chunks(prompt, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    a, b = stepper.sequence(), stepper.sequence()
    both = stepper.feed((b, prompt[:7]), (a, prompt))
    np.testing.assert_array_equal(both[7:], whole)
    for threads, rule_set in ((1, "cache"), (3, "none")):
        np.testing.assert_array_equal(
            prompt_logits(make_backend("cpu", model, isa=isa, threads=threads, rule_set=rule_set), prompt), whole
        )


def test_quantising_twice_is_refused(made, tmp_path):
    ours, _, _ = made
    with pytest.raises(UsageError, match="is quantised already"):
        quantize_folder(ours.path, tmp_path / "twice", PACKINGS["8"])
    assert not (tmp_path / "twice").exists()


def test_what_is_in_the_way_is_kept(folder_of, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        quantize_folder(folder_of("llama"), tmp_path / "out", PACKINGS["8"])
    (tmp_path / "new.partial").mkdir()
    with pytest.raises(UsageError, match="an earlier run"):
        quantize_folder(folder_of("llama"), tmp_path / "new", PACKINGS["8"])
    assert not any((tmp_path / "out").iterdir())
    assert (tmp_path / "new.partial").is_dir()


def test_a_missing_source_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        quantize_folder(tmp_path / "none", tmp_path / "out", PACKINGS["8"])


def test_nothing_is_left_of_a_source_that_has_no_numbers(folder_of, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder_of("llama"), source)
    name = "model.layers.1.mlp.up_proj.weight"
    info = open_model(source).checkpoint.tensors[name]
    with (source / SINGLE).open("r+b") as file:
        file.seek(info.offset)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(CheckpointError, match=r"up_proj.weight\] a weight is infinite or not a number"):
        quantize_folder(source, tmp_path / "out", PACKINGS["4"])
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def check_packing_refused(folder, change, error, words):
    """That a folder whose packing is said otherwise is not opened."""
    config = json.loads((folder / CONFIG).read_text())
    config[KEY] |= change
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(error, match=words):
        open_model(folder)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"quant_method": "gptq"}, UnsupportedError, "'gptq' means quantised weights, which are not supported"),
        ({"version": 3}, UnsupportedError, "version 3 of coterie"),
        ({"version": True}, UnsupportedError, "version True of coterie"),
        ({"bits": 3}, CheckpointError, "bits is 3"),
        ({"bits": True}, CheckpointError, "bits is True"),
        ({"embedding_bits": 16}, CheckpointError, "embedding_bits is 16"),
        ({"bits": 8}, CheckpointError, "has shape .* but config.json wants"),
    ],
)
def test_a_config_that_does_not_fit(folder_of, tmp_path, change, error, words):
    folder = quantize_folder(folder_of("llama"), tmp_path / "out", PACKINGS["4"]).folder
    check_packing_refused(folder, change, error, words)


def test_packed_tensors_without_a_config_are_refused(folder_of, tmp_path):
    folder = quantize_folder(folder_of("llama"), tmp_path / "out", PACKINGS["4"]).folder
    config = json.loads((folder / CONFIG).read_text())
    del config[KEY]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape"):
        open_model(folder)


def test_weights_are_those_of_the_reference(made, packing):
    """The interpreter's weights are the unpacked bytes."""
    ours, _, _ = made
    theirs = load_file(ours.path / SINGLE)
    for name, found in load_weights_f32(ours).items():
        dtype = packing.dtype_of(name, found.shape)
        wanted = unpack(theirs[name].numpy(), dtype, found.shape[1]) if dtype else theirs[name].float().numpy()
        np.testing.assert_array_equal(found, wanted)


def test_bfloat16_norms_are_copied_bit_by_bit(made):
    ours, source, _ = made
    name = "model.layers.0.input_layernorm.weight"
    infos = [model.checkpoint.tensors[name] for model in (ours, source)]
    assert [info.dtype for info in infos] == [DType.BF16, DType.BF16]
    bits = [np.fromfile(i.shard.path, np.uint16, i.shape[0], offset=i.offset) for i in infos]
    np.testing.assert_array_equal(to_f32(bits[0], DType.BF16), to_f32(bits[1], DType.BF16))


@pytest.mark.parametrize(("row", "bits"), [*product(ROWS, ["8", "4 all"]), ("qwen3", "4z")])
def test_rounded_activations_run_like_the_reference(row, bits, folder_of, tmp_path, make_backend):
    """The last bit of a norm can tip a number into the next step of 127: nearer than the rounding itself, not equal."""
    packed = open_model(quantize_folder(folder_of(row), tmp_path / "out", PACKINGS[bits]).folder)
    model = with_activations(packed, "int8")
    prompt = prompt_of(model.config.vocab_size)
    logits = {}
    for name, backend, of in (("plain", "reference", packed), ("ref", "reference", model), ("cpu", "cpu", model)):
        logits[name] = prompt_logits(make_backend(backend, of), prompt)
    lost = np.linalg.norm(logits["ref"] - logits["plain"])
    assert lost > 0
    assert np.linalg.norm(logits["cpu"] - logits["ref"]) <= 0.6 * lost
    assert relative_error(logits["cpu"], logits["ref"]) <= 0.05


@pytest.mark.parametrize("bits", ["8", "4 all"])
def test_sixteen_bits_said_aloud_are_what_a_cpu_computes_anyway(bits, folder_of, tmp_path, make_backend):
    packed = open_model(quantize_folder(folder_of("llama"), tmp_path / "out", PACKINGS[bits]).folder)
    graph = with_rounding(packed.graph, "int16")
    verify(graph)
    aloud = replace(packed, graph=graph)
    prompt, logits = prompt_of(packed.config.vocab_size), {}
    for backend in ("reference", "cpu"):
        for name, model in (("packed", packed), ("aloud", aloud)):
            logits[backend, name] = prompt_logits(make_backend(backend, model), prompt)
    np.testing.assert_array_equal(logits["cpu", "packed"], logits["cpu", "aloud"])
    assert 0 < relative_error(logits["reference", "aloud"], logits["reference", "packed"]) <= most_lost(packed)
    with pytest.raises(UsageError, match=r"rounding is 'int3'.*'int16', 'int8' or"):
        verify(with_rounding(packed.graph, "int3"))


def test_rounding_is_part_of_the_key_and_touches_packed_weights_alone(folder_of, tmp_path):
    plain = open_model(folder_of("llama", dtype="bf16"))
    packed = open_model(
        quantize_folder(folder_of("llama", dtype="bf16"), tmp_path / "out", PACKINGS["4 but embedding"]).folder
    )
    assert with_activations(plain, "int8").key == plain.key
    assert with_activations(packed, "int16") is packed
    model = with_activations(packed, "int8")
    assert model.key != packed.key
    verify(model.graph)
    for op in model.graph.ops:
        is_packed = op.kind == "linear" and model.graph.values[op.inputs[1]].dtype.is_packed
        assert op.attrs.get("rounding") == ("int8" if is_packed else None)
    with pytest.raises(UsageError, match=r"'int3'.*int16, int8"):
        with_activations(packed, "int3")


def test_without_a_packing_matrices_are_bfloat16(folder_of, tmp_path):
    """What was released in float32 gains from activations of bfloat16 only so; norms stay what they are."""
    source = folder_of("llama", dtype="fp32")
    result = quantize_folder(source, tmp_path / "out", None)
    before, after = load_file(source / SINGLE), load_file(tmp_path / "out" / SINGLE)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        wanted = tensor.bfloat16() if tensor.ndim == 2 else tensor
        assert after[name].dtype is wanted.dtype
        assert after[name].equal(wanted)
    assert {(kind.dtype, kind.bits) for kind in result.kinds} == {(DType.BF16, 16.0)}
    assert all(0 < kind.rms_error < 0.003 for kind in result.kinds)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["dtype"] == "bfloat16"
    assert with_activations(open_model(tmp_path / "out"), "bf16").activations == "bf16"
    for again in (tmp_path / "out", folder_of("llama", dtype="bf16")):
        with pytest.raises(UsageError, match="in bfloat16 already"):
            quantize_folder(again, tmp_path / "again", None)

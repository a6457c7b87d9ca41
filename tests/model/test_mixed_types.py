"""Experts whose matrices have types of their own: what config.json says of them, and that they run as one."""

import json

import numpy as np
import pytest
from tests.model.runner import BACKENDS, Stepper, chunks, prompt_logits
from tests.model.test_quantize import check_packing_refused
from tests.model.theirs import most_lost, prompt_of, relative_error

from coterie.checkpoint.folder import CONFIG
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.packed import pack, unpack
from coterie.graph.verify import verify
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.model import load_weights_f32, open_model, synthetic_model, with_activations
from coterie.models.packing import KEY, Packing, packing_of
from coterie.models.quantize import quantize_folder

Q8, Q4, Q4Z = DType.Q8, DType.Q4, DType.Q4Z
UP = "model.layers.{}.mlp.up_proj.weight"
MANY = [f"model.layers.{i}.{kind}" for i in range(9) for kind in ("a", "b")]


def packed_in_turn(folder, out, types):
    """An expert whose matrices have these types in turn, so that each layer's differ: q from k, gate from up."""
    shapes = {name: values.shape for name, values in load_weights_f32(open_model(folder)).items()}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    packing = Packing.of({name: types[i % len(types)] for i, name in enumerate(matrices)})
    return open_model(quantize_folder(folder, out, packing).folder), packing


@pytest.mark.parametrize("row", ["llama-biases", "qwen3", "phi3-partial", "gemma2", "llama-tied"])
@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_it_runs_as_the_reference_does(row, activations, folder_of, tmp_path, make_backend):
    packed, _ = packed_in_turn(folder_of(row), tmp_path / "out", (Q8, Q4Z, Q4, None, Q4Z))
    model = with_activations(packed, activations)
    verify(model.graph)
    prompt, logits = prompt_of(model.config.vocab_size), {}
    for backend in BACKENDS:
        logits[backend] = prompt_logits(make_backend(backend, model), prompt)
    bound = {"int16": most_lost(model), "int8": 0.05}[activations]
    for found in logits.values():
        assert relative_error(found, logits["reference"]) <= bound


@pytest.mark.parametrize("rule_set", ["cache", "none"])
def test_one_answer_however_it_is_stepped(rule_set, folder_of, tmp_path, make_backend):
    model, _ = packed_in_turn(folder_of("qwen3", dtype="bf16"), tmp_path / "out", (Q4, Q4Z, Q8, None))
    prompt = prompt_of(model.config.vocab_size)
    stepper = Stepper(make_backend("cpu", model, rule_set=rule_set))
    whole = stepper.feed((stepper.sequence(), prompt))
    for size in (1, 5, 16):
        sequence = stepper.sequence()
        pieces = [stepper.feed((sequence, piece)) for piece in chunks(prompt, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_each_tensor_has_its_own_type_and_the_config_says_which(folder_of, tmp_path):
    source = folder_of("llama", dtype="bf16")
    model, packing = packed_in_turn(source, tmp_path / "out", (Q8, Q8, Q4, None))
    config = json.loads((model.path / CONFIG).read_text())
    section = config[KEY]
    assert (section["version"], section["layers"]) == (2, "int8")
    assert section["group_sizes"] == {"int8": 128, "int4": 32}
    assert packing_of(config, "") == packing
    before = load_weights_f32(open_model(source))
    for name, found in load_weights_f32(model).items():
        dtype = packing.dtype_of(name, found.shape)
        wanted = unpack(pack(before[name], dtype), dtype, found.shape[1]) if dtype else before[name]
        np.testing.assert_array_equal(found, wanted)
    assert synthetic_model(config).key == model.key
    plain = quantize_folder(source, tmp_path / "plain", Packing(Q8, Q8))
    assert open_model(plain.folder).key != model.key
    assert json.loads((plain.folder / CONFIG).read_text())[KEY]["version"] == 1


def test_errors_are_reported_by_kind_and_type(folder_of, tmp_path):
    odd = {UP.format(1): Q4, "model.layers.0.self_attn.q_proj.weight": None}
    report = quantize_folder(folder_of("llama"), tmp_path / "out", Packing(Q8, None, odd))
    ups = {kind.dtype: kind for kind in report.kinds if kind.kind == "mlp.up_proj"}
    assert {dtype: kind.num_tensors for dtype, kind in ups.items()} == {Q8: 2, Q4: 1}
    assert ups[Q8].rms_error < ups[Q4].rms_error / 5
    assert next(kind.num_tensors for kind in report.kinds if kind.kind == "self_attn.q_proj") == 2


@pytest.mark.parametrize(
    ("section", "packing"),
    [
        ({"version": 1, "bits": 4, "embedding_bits": 8}, Packing(Q4, Q8)),
        ({"version": 1, "bits": 8, "embedding_bits": None}, Packing(Q8, None)),
        ({"version": 2, "layers": "int4z", "tables": None}, Packing(Q4Z, None)),
        ({"version": 2, "layers": None, "tables": "int8"}, Packing(None, Q8)),
        ({"version": 2, "layers": "int8", "tables": "int8", "exceptions": {"a": "int4", "b": None}},
         Packing(Q8, Q8, {"a": Q4, "b": None})),
    ],
)  # fmt: skip
def test_both_versions_are_read(section, packing):
    raw = {KEY: {"quant_method": "coterie", **section}}
    assert packing_of(raw, "") == packing
    assert packing_of({KEY: packing.to_config()}, "") == packing
    assert packing.to_config()["version"] == section["version"]


@pytest.mark.parametrize(
    ("types", "packing"),
    [
        (dict.fromkeys(MANY), None),
        ({**dict.fromkeys(MANY, Q4), EMBED_WEIGHT: Q8, HEAD_WEIGHT: Q8}, Packing(Q4, Q8)),
        ({**dict.fromkeys(MANY, Q4), MANY[0]: Q8, MANY[1]: None}, Packing(Q4, None, {MANY[0]: Q8, MANY[1]: None})),
        ({**dict.fromkeys(MANY), MANY[3]: Q8}, Packing(None, None, {MANY[3]: Q8})),
        ({**dict.fromkeys(MANY, Q8), EMBED_WEIGHT: None, HEAD_WEIGHT: Q4}, Packing(Q8, None, {HEAD_WEIGHT: Q4})),
    ],
)
def test_what_is_usual_is_said_once(types, packing):
    assert Packing.of(types) == packing
    for name, dtype in types.items():
        assert (packing.dtype_of(name, (4, 4)) if packing else None) is dtype


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"version": 3}, UnsupportedError, "version 3 of coterie"),
        ({"version": 2.0}, UnsupportedError, "version 2.0 of coterie"),
        ({"layers": "int5"}, CheckpointError, "layers is 'int5'.*'int8', 'int6', 'int4', 'int4z'"),
        ({"tables": 8}, CheckpointError, "tables is 8"),
        ({"tables": ["int8"]}, CheckpointError, r"tables is \['int8'\]"),
        ({"exceptions": ["a"]}, CheckpointError, r"exceptions is \['a'\]"),
        ({"exceptions": {"a": "q8"}}, CheckpointError, "a is 'q8'"),
        ({"exceptions": {UP.format(9): "int4"}}, CheckpointError, "names model.layers.9.mlp.up_proj.weight, which is"),
        ({"exceptions": {"model.norm.weight": "int4"}}, CheckpointError, "model.norm.weight, which is no matrix"),
        ({"exceptions": {}}, CheckpointError, "up_proj.weight has shape .* but config.json wants"),
    ],
)
def test_a_config_that_does_not_fit(change, error, words, folder_of, tmp_path):
    packing = Packing(Q8, Q8, {UP.format(1): Q4})
    folder = quantize_folder(folder_of("llama"), tmp_path / "out", packing).folder
    check_packing_refused(folder, change, error, words)


def test_an_exception_that_the_model_does_not_have_is_refused_before_anything_is_written(folder_of, tmp_path):
    with pytest.raises(CheckpointError, match=r"model.layers.9.mlp.up_proj.weight, which is no matrix"):
        quantize_folder(folder_of("llama"), tmp_path / "out", Packing(Q8, Q8, {UP.format(9): Q4}))
    assert not list(tmp_path.iterdir())

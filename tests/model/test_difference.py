"""A base with a fine-tune's packed difference beside it: transformers' model with the sums of their weights."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.model import differences, tiny
from tests.model.runner import BACKENDS, Stepper, prompt_logits
from tests.model.test_merge import logits_of
from tests.model.theirs import prompt_of, relative_error
from tests.model.ways import check_in_turns, check_one_answer

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.graph import ops
from coterie.models.fine_tunes.delta import open_delta
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.model import open_model, with_activations
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

OURS = 1e-4  # relative to the largest logit: our kernels beside transformers', in float32
INT8 = Packing(DType.Q8, DType.Q8)
ROWS = ["llama-biases", "phi3-partial", "gemma2", "mixtral"]
LATER = (
    "phi-gqa",
    "qwen3-bias",
    "llama",
    "olmo2-bias",
    "granite",
    "gemma3",
    "stablelm-parallel",
    "starcoder2",
    "qwen3-moe",
    "deepseek-v3",
)
ROWS += [pytest.param(row, marks=pytest.mark.long) for row in LATER]


def made(row, folder_of, tmp_path, packing=INT8, **changes):
    """A base, its fine-tune and the delta of the two."""
    base = folder_of(row)
    tuned = differences.tune(base, tmp_path / "tuned", **changes)
    write_delta(base, tuned, tmp_path / "delta", packing)
    return base, tuned, tmp_path / "delta"


@pytest.mark.parametrize("row", ROWS)
def test_beside_transformers(row, folder_of, tmp_path, make_backend):
    """Joined matrices, tied embeddings, biases, norms of every kind, branches that are whole."""
    base, tuned, folder = made(row, folder_of, tmp_path)
    model = open_delta(open_model(base), folder)
    prompt = prompt_of(model.config.vocab_size)
    wanted = logits_of(differences.summed(base, tuned, folder, INT8), prompt)
    assert relative_error(logits_of(tiny.load(base), prompt), wanted) > 0.05
    assert relative_error(prompt_logits(make_backend("cpu", model), prompt), wanted) <= OURS
    assert relative_error(logits_of(tiny.load(tuned), prompt), wanted) <= 0.05


@pytest.mark.parametrize("row", ["llama", "qwen3.5", "lfm2", "apertus", "qwen3-next"])
def test_a_sequence_keeps_what_it_does_without_a_delta(row, folder_of, tmp_path):
    base, tuned, folder = made(row, folder_of, tmp_path)
    assert open_delta(open_model(base), folder).kv == open_model(tuned).kv


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule_set", ["none", "cache"])
def test_every_way_to_step_gives_one_answer(backend, rule_set, folder_of, tmp_path, make_backend):
    """The reference, fused and unfused, alone and in a batch, a prompt at once and token by token."""
    base, tuned, folder = made("qwen3", folder_of, tmp_path)
    model = open_delta(open_model(base), folder)
    prompt = prompt_of(model.config.vocab_size)[:12]
    wanted = logits_of(differences.summed(base, tuned, folder, INT8), prompt)
    check_one_answer(backend, rule_set, model, wanted, prompt, OURS, make_backend)


@pytest.mark.parametrize("layers", [pytest.param(DType.Q4, marks=pytest.mark.long), DType.Q4Z, DType.Q2])
@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_other_types_beside_a_packed_base(layers, activations, folder_of, tmp_path, make_backend):
    """The reference rounds as the device does; what is near the fine-tune is the sum, of a packed base too."""
    packing, (lost, apart) = Packing(layers, DType.Q8), (0.12, 0.6) if layers is DType.Q2 else (0.05, 0.2)
    packed, tuned = tmp_path / "packed", differences.tune(folder_of("llama-tied"), tmp_path / "tuned")
    quantize_folder(folder_of("llama-tied"), packed, Packing(DType.Q4, DType.Q8))
    result = write_delta(packed, tuned, tmp_path / "delta", packing)
    assert all(row.lost < lost and 0.2 < row.change < 0.4 for row in result.kinds if row.dtype)
    model = with_activations(open_delta(open_model(packed), tmp_path / "delta"), activations)
    prompt = prompt_of(model.config.vocab_size)
    found = [prompt_logits(make_backend(backend, model), prompt) for backend in ("reference", "cpu")]
    bound = 0.02 if activations == "int16" else 0.05  # one more rounded up is 1/127 of a group's largest
    assert relative_error(found[1], found[0]) <= bound
    assert relative_error(found[0], logits_of(tiny.load(tuned), prompt)) <= apart


@pytest.mark.parametrize("layers", [DType.Q4, DType.Q2, DType.Q8])
def test_what_meets_few_bits_is_rounded_to_8(layers, folder_of, tmp_path, make_backend):
    """Of a difference's products alone, and where 8 bits lose much less of a product than packing did."""
    _, tuned, folder = made("qwen3", folder_of, tmp_path, Packing(layers, DType.Q8))
    model = open_delta(open_model(folder_of("qwen3")), folder)
    roundings = {op.inputs[1]: op.attrs[ops.ROUNDING] for op in model.graph.ops if ops.ROUNDING in op.attrs}
    few = {value.name for value in model.graph.weights if value.dtype is layers and layers is not DType.Q8}
    assert roundings == dict.fromkeys(few, ops.INT8_OR_FINER)
    prompt = prompt_of(model.config.vocab_size)
    wanted = logits_of(tiny.load(tuned), prompt)
    found, eight, sixteen = (
        prompt_logits(make_backend("cpu", replace(model, graph=graph)), prompt)
        for graph in (model.graph, rounding(model.graph, ops.INT8), rounding(model.graph, ops.INT16))
    )
    np.testing.assert_array_equal(found, eight)
    assert np.array_equal(found, sixteen) == (not few)
    assert relative_error(found, sixteen) < 0.2 * relative_error(sixteen, wanted)


def rounding(graph, to):
    """The graph in which products that say what they round to say this."""
    said = (replace(op, attrs={**op.attrs, ops.ROUNDING: to}) if ops.ROUNDING in op.attrs else op for op in graph.ops)
    return replace(graph, ops=tuple(said))


def test_two_deltas_in_turn_are_each_as_alone(folder_of, tmp_path, make_backend):
    """One base, two fine-tunes, tokens of both in turn on one device; equal shapes are one architecture."""
    base, models = open_model(folder_of("llama")), []
    for seed in (1, 2):
        _, _, folder = made("llama", folder_of, tmp_path / str(seed), seed=seed)
        models.append(open_delta(base, folder))
    check_in_turns(base, models, make_backend)


def test_what_is_equal_is_left_out_and_the_rest_comes_by_stages(folder_of, tmp_path, make_backend):
    """A base in shards, one matrix a layer, then all; of the tied embedding a prompt's rows may come first."""
    _, tuned, folder = made("llama-tied", folder_of, tmp_path, only="v_proj")
    stored = load_file(folder / "delta.safetensors")
    assert sorted(stored) == [f"model.layers.{i}.self_attn.v_proj.delta" for i in range(3)]
    base = tiny.save(tiny.load(folder_of("llama-tied")), tmp_path / "sharded", max_shard_size="40KB")
    assert (base / "model.safetensors.index.json").exists()
    model = open_delta(open_model(base), folder)  # the same numbers in other files
    prompt = prompt_of(model.config.vocab_size)
    wanted = logits_of(differences.summed(base, tuned, folder, INT8), prompt)
    backend = make_backend("cpu", model)
    assert relative_error(prompt_logits(backend, prompt), wanted) <= OURS
    assert model.layout.table is None
    assert model.layout.stages == ("layers.0", "layers.2")  # three small tensors in two blocks
    _, tuned, folder = made("llama-tied", folder_of, tmp_path / "all")
    model = open_delta(open_model(base), folder)
    assert model.layout.stages == ("embed", *(f"layers.{i}" for i in range(3)))  # the last norm is in their block
    assert (model.layout.table.num_rows, model.layout.table.later_stages) == (101, ("head",))
    backend, wanted = make_backend("cpu", model), logits_of(differences.summed(base, tuned, folder, INT8), prompt)
    stepper = Stepper(backend)
    rows = stepper.rows((stepper.sequence(), prompt), sample="last")
    assert backend.tokens_behind_gates(rows)[0, 0] == np.argmax(wanted[-1])


def test_tables_may_be_whole_and_of_another_vocabulary(folder_of, tmp_path, make_backend):
    """Sixteen bits of embedding and head; tokens that were added leave these no difference."""
    whole = Packing(DType.Q8, None)
    base, tuned, folder = made("llama", folder_of, tmp_path, whole)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    for name in names:
        np.testing.assert_array_equal(
            load_file(folder / "delta.safetensors")[name], tiny.load(tuned).state_dict()[name]
        )
    grown = tiny.load(tuned)
    grown.resize_token_embeddings(260)
    tiny.save(grown, tmp_path / "grown")
    result = write_delta(base, tmp_path / "grown", tmp_path / "more", INT8)
    assert {row.kind for row in result.kinds if row.dtype is None} >= {"embed_tokens", "lm_head"}
    assert "the vocabulary is 260, the base's 257" in result.notes[0]
    for place, theirs in ((folder, tuned), (tmp_path / "more", tmp_path / "grown")):
        model = open_delta(open_model(base), place)
        prompt = prompt_of(model.config.vocab_size)
        wanted = logits_of(differences.summed(base, theirs, place, INT8), prompt)
        assert relative_error(prompt_logits(make_backend("cpu", model), prompt), wanted) <= OURS


def test_the_config_is_the_fine_tunes(folder_of, tmp_path, make_backend):
    """A longer context by another rope, other end tokens: the base's weights are read by the fine-tune's graph."""
    base, tuned = folder_of("llama"), differences.tune(folder_of("llama"), tmp_path / "tuned")
    raw = json.loads((tuned / "config.json").read_text())
    raw["max_position_embeddings"], raw["rope_parameters"]["rope_theta"] = 512, 5e5
    (tuned / "config.json").write_text(json.dumps(raw))
    (tuned / "generation_config.json").write_text('{"eos_token_id": 11}')
    write_delta(base, tuned, tmp_path / "delta", INT8)
    model = open_delta(open_model(base), tmp_path / "delta")
    assert (model.max_context, model.end_ids, model.base.max_context) == (512, (11,), 256)
    prompt = prompt_of(model.config.vocab_size)
    wanted = logits_of(differences.summed(base, tuned, tmp_path / "delta", INT8), prompt)
    assert relative_error(prompt_logits(make_backend("cpu", model), prompt), wanted) <= OURS


def test_what_belongs_to_no_base_is_refused(folder_of, tmp_path):
    base, tuned, folder = made("llama", folder_of, tmp_path)
    with pytest.raises(CheckpointError, match=r"is a difference from other weights than those of .*; use the base"):
        open_delta(open_model(tuned), folder)
    with pytest.raises(CheckpointError, match="holds a fine-tune's difference from its base, where a whole model"):
        open_model(folder)
    with pytest.raises(CheckpointError, match="hidden_size is 80, but 48 in the base"):
        write_delta(folder_of("phi"), folder_of("phi-gqa"), tmp_path / "out", INT8)
    with pytest.raises(CheckpointError, match="model_type is qwen3, but llama in the base"):
        write_delta(base, folder_of("qwen3"), tmp_path / "out", INT8)
    with pytest.raises(CheckpointError, match=r"has the weights of .*, to the last bit; serve the base"):
        write_delta(base, shutil.copytree(base, tmp_path / "same"), tmp_path / "out", INT8)
    quantize_folder(tuned, tmp_path / "packed", INT8)
    with pytest.raises(UsageError, match="is quantised, and a difference is taken of the weights that were trained"):
        write_delta(base, tmp_path / "packed", tmp_path / "out", INT8)
    result = write_delta(base, folder_of("llama", seed=3), tmp_path / "far", INT8)
    assert "differs by 14" in result.notes[0]
    assert "was this model fine-tuned from that base?" in result.notes[0]
    assert not (tmp_path / "out").exists()


def test_damaged_folders_are_refused(folder_of, tmp_path):
    base, _, folder = made("llama", folder_of, tmp_path)
    model, config = open_model(base), json.loads((folder / "delta_config.json").read_text())
    stored = load_file(folder / "delta.safetensors")
    q, norm = "model.layers.0.self_attn.q_proj.delta", "model.norm.weight"

    def refused(error, match, changes=None, **tensors):
        (folder / "delta_config.json").write_text(json.dumps(config | (changes or {})))
        kept = stored | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        save_file({name: t for name, t in kept.items() if t is not None}, folder / "delta.safetensors")
        with pytest.raises(error, match=match):
            open_delta(model, folder)

    refused(UnsupportedError, "is version 7 of delta_type 'coterie', where 1 of", {"version": 7})
    refused(CheckpointError, "does not say how its differences are packed", {"quantization_config": None})
    other = config["quantization_config"] | {"bits": 4}
    refused(CheckpointError, r"delta is U8 \[48, 98\], which is not what", {"quantization_config": other})
    refused(CheckpointError, r"q_proj.delta is U8 \[47, 66\]", **{q: stored[q][1:].clone()})
    refused(CheckpointError, r"norm.weight is F32 \[47\], where floats \[48\]", **{norm: stored[norm][1:].clone()})
    refused(CheckpointError, "holds model.extra, which is neither", **{"model.extra": stored[norm].clone()})
    (folder / "delta.safetensors").unlink()
    (folder / "delta_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has no delta\.safetensors; write it again"):
        open_delta(model, folder)

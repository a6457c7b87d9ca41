"""Opening checkpoint folders: what a Model holds, and one clear sentence for everything that does not fit together."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import tiny
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models as library_models

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError
from coterie.engine.served import ServedExpert
from coterie.models.model import load_weights_f32, open_model, synthetic_model
from coterie.models.registry import decoder_graph


@pytest.fixture
def folder(folder_of, tmp_path):
    """A copy of a tiny Llama that a test may damage."""
    return shutil.copytree(folder_of("llama"), tmp_path / "llama")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder, **changes):
    """Replace tensors; None removes one."""
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})


def test_what_a_model_holds(folder_of):
    model = open_model(folder_of("qwen3", dtype="bf16"), name="q")
    assert (model.name, model.path, model.max_context) == ("q", folder_of("qwen3", dtype="bf16"), 256)
    assert (model.kv.num_layers, model.kv.num_kv_heads, model.kv.head_dim, model.kv.dtype) == (3, 2, 16, DType.BF16)
    assert model.graph.stages == ("embed", "layers.0", "layers.1", "layers.2", "head") == model.layout.stages
    assert {w.name for w in model.graph.weights} == set(model.layout.tensors) == set(model.checkpoint.tensors)
    assert {w.dtype for w in model.graph.weights} == {DType.BF16}
    assert open_model(folder_of("qwen3", dtype="bf16", seed=1)).key == model.key
    assert open_model(folder_of("qwen3", dtype="fp16")).key != model.key
    assert open_model(folder_of("qwen3")).key != model.key


def test_experts_of_one_architecture_have_one_graph(folder_of, folder):
    """Of hundreds there is no other's copy. What differs in anything that a graph says has its own."""
    one, other = (open_model(folder_of("llama", seed=seed)) for seed in (0, 1))
    assert one.graph is other.graph
    assert one.layout.ranges != other.layout.ranges  # files are their own
    assert one.graph == decoder_graph(one.config, {w.name: w.dtype for w in one.graph.weights})
    change_config(folder, rms_norm_eps=0.5)
    assert open_model(folder).graph is not one.graph
    assert open_model(folder).key != one.key
    assert open_model(folder_of("llama", dtype="bf16")).graph is not one.graph


def test_the_order_of_ops_is_the_one_that_fusion_rules_match(folder_of):
    graph = open_model(folder_of("qwen3")).graph
    layer = [op.kind for op in graph.ops if op.stage == "layers.1"]
    norm_qkv = ["rms_norm", "linear", "linear", "linear"]
    attend = ["rope", "rope", "kv_append", "attention", "linear", "add"]
    feed_forward = ["rms_norm", "linear", "linear", "silu", "mul", "linear", "add"]
    assert layer == [*norm_qkv, "rms_norm", "rms_norm", *attend, *feed_forward]
    assert [op.kind for op in graph.ops if op.stage == "head"] == ["take_rows", "rms_norm", "linear", "sample"]
    plain = [op.kind for op in open_model(folder_of("llama")).graph.ops if op.stage == "layers.1"]
    assert plain == [*norm_qkv, *attend, *feed_forward]


@pytest.mark.parametrize("dtype", tiny.DTYPES)
def test_weights_are_those_of_the_file(folder_of, dtype):
    folder = folder_of("qwen2", dtype=dtype)
    ours = load_weights_f32(open_model(folder))
    theirs = tiny.load(folder, dtype).state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.float().numpy())


def test_shards_give_the_same_model(folder_of, tmp_path):
    tiny.save(tiny.make("llama"), tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    whole, sharded = open_model(folder_of("llama")), open_model(tmp_path)
    assert whole.key == sharded.key
    ours, theirs = load_weights_f32(sharded), load_weights_f32(whole)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert _fetched(sharded) == _fetched(whole)


def _fetched(model):
    """Every tensor's bytes as they lie in an extent that was filled range by range."""
    extent = bytearray(model.layout.size_bytes)
    for placed in model.layout.ranges:
        with Path(placed.source.path).open("rb") as file:
            file.seek(placed.source.offset)
            piece = file.read(placed.source.size_bytes)
        extent[placed.offset : placed.offset + len(piece)] = piece
    found = {}
    for name, put in model.layout.tensors.items():
        size = int(np.prod(put.shape)) * put.dtype.size_bytes
        found[name] = bytes(extent[put.offset : put.offset + size])
    return found


def test_older_keys_open_the_same_model(folder):
    wanted = open_model(folder)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw |= {"rope_theta": raw.pop("rope_parameters")["rope_theta"], "torch_dtype": raw.pop("dtype")}
    path.write_text(json.dumps({**raw, "rope_scaling": None, "pretraining_tp": 1}))
    assert open_model(folder).key == wanted.key


def test_tensors_that_do_not_fit(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, **{name: None})
    with pytest.raises(CheckpointError, match=r"up_proj.weight \[68, 48\] is missing \(the nearest name is") as caught:
        open_model(folder)
    assert "1 of 30 tensors are" in str(caught.value)
    change_tensors(folder, **{name: torch.zeros(48, 68)})
    with pytest.raises(CheckpointError, match=r"up_proj.weight has shape \[48, 68\] but config.json wants \[68, 48\]"):
        open_model(folder)
    change_tensors(folder, **{name: torch.zeros(68, 48, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=r"up_proj.weight has element type I32 but F32, F16 or BF16 is wanted"):
        open_model(folder)


@pytest.mark.parametrize(
    "leftover", ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight", "extra"]
)
def test_tensors_that_would_be_ignored_are_refused(folder, leftover):
    change_tensors(folder, **{leftover: torch.zeros(48)})
    with pytest.raises(UnsupportedError, match="holds tensors that its config") as caught:
        open_model(folder)
    assert leftover in str(caught.value)


def test_harmless_leftovers(folder):
    wanted = open_model(folder)
    change_tensors(
        folder,
        **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6), "model.rotary_emb.inv_freq": torch.ones(6)},
    )
    model = open_model(folder)
    assert model.key == wanted.key
    assert set(model.layout.tensors) == set(wanted.layout.tensors)


def test_a_tied_head_in_the_file(folder):
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        open_model(folder)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(folder, **{"lm_head.weight": table.clone()})
    with_head = open_model(folder)
    change_tensors(folder, **{"lm_head.weight": None})
    without = open_model(folder)
    assert with_head.key == without.key
    assert with_head.layout.size_bytes <= without.layout.size_bytes + BLOCK_BYTES
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"tensor lm_head.weight \[257, 48\] is missing"):
        open_model(folder)


def test_end_tokens(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 256]}))
    assert open_model(folder).end_ids == (2, 256)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 257]}))
    with pytest.raises(CheckpointError, match="end token 257 is outside the vocabulary of 257 tokens"):
        open_model(folder)


def test_a_tokenizer_with_more_tokens_than_rows(folder):
    def save_tokenizer(size):
        words = {f"w{i}": i for i in range(size)}
        LibraryTokenizer(library_models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))

    save_tokenizer(200)
    open_model(folder)
    save_tokenizer(258)
    with pytest.raises(CheckpointError, match=r"token ids up to 257 but config\.json has vocab_size 257"):
        open_model(folder)


def test_an_added_token_may_lack_a_row(folder):
    """As in Gemma 3's text models; a prompt that holds it is refused."""
    library = LibraryTokenizer(library_models.WordLevel({f"w{i}": i for i in range(257)}, unk_token="w0"))
    library.add_special_tokens(["<image>"])
    library.save(str(folder / "tokenizer.json"))
    model = open_model(folder)
    ids = Tokenizer.from_folder(folder).encode("<image>")
    assert ids == [257] == [model.config.vocab_size]
    exe = SimpleNamespace(program=SimpleNamespace(samples_tokens=True))
    served = ServedExpert("it", model.layout, exe, model.kv, model.max_context, model.config.vocab_size)
    with pytest.raises(RequestError, match="the prompt holds token 257 but the vocabulary has 257"):
        served.check_prompt(ids)


def test_a_file_that_is_cut_after_opening(folder):
    model = open_model(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights_f32(model)


def test_a_model_without_bytes(folder_of):
    real = open_model(folder_of("qwen2", dtype="bf16"))
    made = synthetic_model(real.checkpoint.config, "twin")
    assert (made.name, made.path, made.key, made.end_ids) == ("twin", None, real.key, ())
    assert {r.source.path for r in made.layout.ranges} == {""}
    assert made.layout.stages == real.layout.stages
    weights = sum(t.size_bytes for t in made.checkpoint.tensors.values())
    assert weights <= made.layout.size_bytes < weights + BLOCK_BYTES
    with pytest.raises(CheckpointError, match="dtype is 'int4'; it must be one of float32, float16, bfloat16"):
        synthetic_model({**real.checkpoint.config, "dtype": "int4"})

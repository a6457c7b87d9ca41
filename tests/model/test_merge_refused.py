"""Adapters and bases that cannot be merged: one sentence each, with names and numbers, and nothing is left behind."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import adapters, tiny

from coterie.checkpoint.folder import ADAPTER_CONFIG
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.models.fine_tunes.adapter import ADAPTER_WEIGHTS, open_adapter
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

Q = "model.layers.1.self_attn.q_proj"
KEY = adapters.PREFIX + Q


@pytest.fixture
def base(folder_of):
    return folder_of("llama")


@pytest.fixture
def adapter(base, tmp_path):
    """A good adapter, which a test may damage."""
    return adapters.write(tmp_path / "adapter", adapters.parts(tiny.load(base), ["q_proj", "v_proj"]))


def change(adapter, **tensors):
    """Replace tensors of an adapter by their name; None removes one."""
    whole = {**load_file(adapter / ADAPTER_WEIGHTS), **tensors}
    save_file({name: t for name, t in whole.items() if t is not None}, adapter / ADAPTER_WEIGHTS)


def configure(folder, name=ADAPTER_CONFIG, **changes):
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def refused(error, words, base, adapter, out):
    """The sentence has all the words, and neither a folder nor half of one is there."""
    with pytest.raises(error) as caught:
        merge_folder(base, adapter, out)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not list(out.parent.glob("out*"))


@pytest.mark.parametrize("kind", ["IA3", "PREFIX_TUNING", "ADALORA", None])
def test_other_kinds_of_adapter(kind, base, adapter, tmp_path):
    configure(adapter, peft_type=kind)
    refused(UnsupportedError, ["peft_type", repr(kind), "not merged", "LORA"], base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "changes", "words"),
    [
        (UnsupportedError, {"layer_replication": [[0, 2], [1, 3]]}, ["layer_replication", "more than once"]),
        (UnsupportedError, {"alora_invocation_tokens": [5, 6]}, ["alora_invocation_tokens", "from certain tokens on"]),
        (UnsupportedError, {"trainable_token_indices": [3]}, ["trainable_token_indices = [3]", "single rows"]),
        (UnsupportedError, {"target_parameters": ["mlp.experts"]}, ["target_parameters", "no layer's weight"]),
        (UnsupportedError, {"lora_bias": True}, ["lora_bias"]),
        (UnsupportedError, {"use_qalora": True}, ["use_qalora", "pooled"]),
        (UnsupportedError, {"init_lora_weights": "pissa_niter_4"}, ["'pissa_niter_4'", "changed", "plain LoRA"]),
        (UnsupportedError, {"init_lora_weights": "olora"}, ["init_lora_weights is 'olora'"]),
        (CheckpointError, {"r": 8}, [Q.replace("1", "0"), "rank 4", "says 8"]),
        (CheckpointError, {"rank_pattern": {Q: 2}}, [Q, "lora_A.weight is [4, 48]", "says 2"]),
        (CheckpointError, {"r": 0}, ["r is 0", "at least 1"]),
        (CheckpointError, {"rank_pattern": {"q_proj": "4"}}, ["rank_pattern", "q_proj is '4'"]),
        (CheckpointError, {"alpha_pattern": {"q_proj": -1}}, ["alpha_pattern", "q_proj is -1", "above 0"]),
        (CheckpointError, {"alpha_pattern": {"(q_proj": 1}}, ["'(q_proj'", "regular expression"]),
        (CheckpointError, {"lora_alpha": "many"}, ["lora_alpha is 'many'"]),
        (CheckpointError, {"target_modules": ["q_proj"]}, ["v_proj", "target_modules does not name it"]),
        (CheckpointError, {"target_modules": ["proj", "_proj"]}, ["q_proj", "target_modules does not name it"]),
        (CheckpointError, {"target_modules": r".*\.q_proj"}, ["v_proj", "target_modules does not name it"]),
        (CheckpointError, {"target_modules": 7}, ["target_modules is 7"]),
        (CheckpointError, {"use_dora": True}, ["lora_magnitude_vector is missing", "use_dora is true"]),
        (CheckpointError, {"use_rslora": "yes"}, ["use_rslora is 'yes'"]),
    ],
)
def test_configs(error, changes, words, base, adapter, tmp_path):
    configure(adapter, **changes)
    refused(error, words, base, adapter, tmp_path / "out")


def test_a_number_of_thousands_of_digits(base, adapter, tmp_path):
    (adapter / ADAPTER_CONFIG).write_text('{"peft_type": "LORA", "r": ' + 5000 * "1" + "}")
    refused(CheckpointError, [ADAPTER_CONFIG, "thousands of digits"], base, adapter, tmp_path / "out")


def test_an_adapter_of_another_size_of_base(folder_of, tmp_path):
    other = adapters.parts(tiny.load(folder_of("llama-head80")), ["q_proj", "v_proj"])
    adapter = adapters.write(tmp_path / "adapter", other)
    words = ["q_proj.weight: A [4, 48] and B [320, 4] are for a matrix [320, 48]", "is [48, 48]", "some/base"]
    refused(CheckpointError, words, folder_of("llama"), adapter, tmp_path / "out")


def test_an_adapter_of_a_deeper_base(folder_of, base, tmp_path):
    parts = adapters.parts(tiny.load(base), ["q_proj"])
    parts["model.layers.3.self_attn.q_proj"] = parts[Q]
    adapter = adapters.write(tmp_path / "adapter", parts)
    words = ["model.layers.3.self_attn.q_proj.weight", "does not have", "nearest", "trained on: some/base"]
    refused(CheckpointError, words, base, adapter, tmp_path / "out")


def test_names_that_match_nothing(folder_of, adapter, base, tmp_path):
    """A joined matrix for a base that has its parts, and the other way round; a module of another model."""
    joined = adapters.write(tmp_path / "joined", adapters.parts(tiny.load(folder_of("phi3")), ["qkv_proj"]))
    words = ["qkv_proj.weight", "the base does not have"]
    refused(CheckpointError, words, base, joined, tmp_path / "out")
    words = ["self_attn.q_proj.weight", "the base does not have", "qkv_proj"]
    refused(CheckpointError, words, folder_of("phi3"), adapter, tmp_path / "out")
    change(adapter, **{f"{adapters.PREFIX}score.weight": torch.ones(2, 48)})
    refused(CheckpointError, ["changes score.weight", "does not have"], base, adapter, tmp_path / "out")


def test_a_bias_that_the_base_does_not_have(base, adapter, tmp_path):
    change(adapter, **{f"{KEY}.base_layer.bias": torch.ones(48)})
    refused(CheckpointError, [f"{Q}.bias", "the base does not have"], base, adapter, tmp_path / "out")


def test_whole_tensors_of_other_sizes(base, adapter, tmp_path):
    change(adapter, **{f"{adapters.PREFIX}model.norm.weight": torch.ones(50)})
    words = ["model.norm.weight as F32 [50]", "the base's is [48]"]
    refused(CheckpointError, words, base, adapter, tmp_path / "out")
    change(adapter, **{f"{adapters.PREFIX}model.norm.weight": None, f"{KEY}.base_layer.weight": torch.ones(50, 48)})
    refused(CheckpointError, [f"{Q}.weight as F32 [50, 48]"], base, adapter, tmp_path / "out")


def test_factors_of_another_width(base, adapter, tmp_path):
    change(adapter, **{f"{KEY}.lora_A.weight": torch.ones(4, 50)})
    refused(CheckpointError, ["are for a matrix [48, 50]", "it is [48, 48]"], base, adapter, tmp_path / "out")


def test_a_vocabulary_that_grew_in_one_place_only(base, adapter, tmp_path):
    change(adapter, **{f"{adapters.PREFIX}model.embed_tokens.weight": torch.ones(300, 48)})
    words = ["embed_tokens.weight with 300 rows", "lm_head.weight with 257 rows"]
    refused(CheckpointError, words, base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{KEY}.lora_B.weight": None}, [Q, "has lora_A.weight, where lora_A.weight and lora_B.weight belong"]),
        ({f"{KEY}.lora_embedding_A": torch.ones(4, 48)}, [Q, "lora_embedding_A and lora_embedding_B belong"]),
        ({f"{KEY}.lora_magnitude_vector": torch.ones(48)}, ["lora_magnitude_vector is there", "use_dora is false"]),
        ({f"{KEY}.lora_C.weight": torch.ones(4)}, ["lora_C.weight", "kind of tensor that is not merged"]),
        (
            {f"{KEY}.lora_A.other.weight": torch.ones(4, 48)},
            ["lora_A.other.weight", "as save_pretrained names it"],
        ),
        ({f"{KEY}.lora_A.weight": torch.ones(4, 48, 1)}, ["lora_A.weight is F32 [4, 48, 1]", "a matrix"]),
        ({f"{KEY}.lora_A.weight": torch.ones(4, 48).int()}, ["lora_A.weight is I32 [4, 48]"]),
        ({f"{KEY}.base_layer.bias": torch.ones(48), f"{KEY}.bias": torch.ones(48)}, [Q, "is there twice"]),
    ],
)
def test_tensors_that_do_not_belong(tensors, words, base, adapter, tmp_path):
    change(adapter, **tensors)
    refused(UsageError, words, base, adapter, tmp_path / "out")


def test_dora_of_another_length_and_of_an_embedding(base, tmp_path):
    parts = adapters.parts(tiny.load(base), ["q_proj"], dora=True)
    adapter = adapters.write(tmp_path / "adapter", parts, use_dora=True)
    change(adapter, **{f"{KEY}.lora_magnitude_vector": torch.ones(47)})
    words = [Q, "lora_magnitude_vector is F32 [47], where [48]"]
    refused(CheckpointError, words, base, adapter, tmp_path / "out")
    change(adapter, **{f"{KEY}.lora_magnitude_vector": torch.ones(48).int()})
    refused(CheckpointError, [Q, "lora_magnitude_vector is I32 [48]"], base, adapter, tmp_path / "out")
    parts = adapters.parts(tiny.load(base), ["embed_tokens"], dora=True)
    adapter = adapters.write(tmp_path / "embedding", parts, use_dora=True)
    refused(UnsupportedError, ["embed_tokens", "use_dora"], base, adapter, tmp_path / "out")


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_all_linear_is_neither_head_nor_embedding(name, base, tmp_path):
    adapter = adapters.write(tmp_path / "adapter", adapters.parts(tiny.load(base), [name]), target_modules="all-linear")
    refused(CheckpointError, [name, "target_modules does not name it"], base, adapter, tmp_path / "out")


def test_one_matrix_that_was_trained_as_one(folder_of, tmp_path):
    base = folder_of("llama-tied")
    parts = adapters.parts(tiny.load(base), ["embed_tokens"])
    adapter = adapters.write(tmp_path / "adapter", parts, ensure_weight_tying=True)
    refused(UnsupportedError, ["ensure_weight_tying", "embed_tokens.weight"], base, adapter, tmp_path / "out")
    plain = adapters.write(tmp_path / "plain", adapters.parts(tiny.load(base)), ensure_weight_tying=True)
    assert not merge_folder(base, plain, tmp_path / "made").untied
    before = tiny.load(base).lm_head.weight.detach()
    wholes = {"lm_head.weight": before + 2, "model.embed_tokens.weight": before + 1}
    adapter = adapters.write(tmp_path / "apart", {}, wholes, ensure_weight_tying=True)
    refused(UnsupportedError, ["ensure_weight_tying", "lm_head.weight"], base, adapter, tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(value, base, adapter, tmp_path):
    change(adapter, **{f"{KEY}.lora_B.weight": torch.full((48, 4), value)})
    refused(CheckpointError, [f"{Q}.weight", "infinite or not a number in F32"], base, adapter, tmp_path / "out")


def test_numbers_that_the_bases_type_cannot_hold(folder_of, adapter, tmp_path):
    change(adapter, **{f"{KEY}.lora_B.weight": torch.full((48, 4), 1e6)})
    words = [f"{Q}.weight", "infinite or not a number in F16"]
    refused(CheckpointError, words, folder_of("llama", dtype="fp16"), adapter, tmp_path / "out")


def test_quantised_bases(base, adapter, tmp_path):
    packed = quantize_folder(base, tmp_path / "packed", Packing(DType.Q8, DType.Q8)).folder
    words = ["packed", "is quantised", "unquantised base"]
    refused(UsageError, words, packed, adapter, tmp_path / "out")
    other = shutil.copytree(base, tmp_path / "other")
    configure(other, "config.json", quantization_config={"quant_method": "gptq"})
    refused(UsageError, ["other", "is quantised"], other, adapter, tmp_path / "out")


def test_what_is_in_the_way_is_kept(base, adapter, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already; name a new folder"):
        merge_folder(base, adapter, tmp_path / "there")
    assert not any((tmp_path / "there").iterdir())
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(UsageError, match=r"out.partial\] exists already; remove what an earlier run left"):
        merge_folder(base, adapter, tmp_path / "out")
    with pytest.raises(UsageError, match=r"config.json/out\] cannot be written: File exists"):
        merge_folder(base, adapter, base / "config.json" / "out")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (ADAPTER_CONFIG, ["has no adapter_config.json", "that PEFT saved"]),
        (ADAPTER_WEIGHTS, ["has no adapter_model.safetensors (but adapter_model.bin)", "safetensors"]),
    ],
)
def test_files_that_are_missing(file, words, base, adapter, tmp_path):
    (adapter / "adapter_model.bin").write_bytes(b"")
    (adapter / file).unlink()
    refused(CheckpointError, words, base, adapter, tmp_path / "out")


def test_folders_that_are_missing(base, adapter, tmp_path):
    refused(CheckpointError, ["nothing", "does not exist"], tmp_path / "nothing", adapter, tmp_path / "out")
    refused(CheckpointError, ["nothing", "does not exist", "adapter"], base, tmp_path / "nothing", tmp_path / "out")
    refused(CheckpointError, ["holds a LoRA adapter", "whole model"], adapter, adapter, tmp_path / "out")
    save_file({}, adapter / ADAPTER_WEIGHTS)
    with pytest.raises(CheckpointError, match="there is no tensor"):
        open_adapter(adapter)


def test_families_that_are_not_run(base, adapter, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    configure(other, "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    refused(UnsupportedError, ["'gpt2'", "is not supported"], other, adapter, tmp_path / "out")


def test_a_tokenizer_that_does_not_fit_is_told_when_it_is_merged(base, adapter, tmp_path):
    vocab = {f"t{i}": i for i in range(open_model(base).config.vocab_size + 1)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    }
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = ["cannot be served", "token ids up to 257", "vocab_size 257"]
    refused(CheckpointError, words, base, adapter, tmp_path / "out")

"""Encoders' folders as they were released: vocabularies, dense layers, heads, and older names of keys."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from tests.model.test_encoders import TEXTS, hidden, make, save, wanted
from tests.system.tiny import write_tokenizer

from coterie.api import Coterie
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

WORDS = (
    *("[PAD]", "x", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "##s", "47", "+", "8", "##5", "4", "##7", "?"),
    *("caf", "##e", "\u00e9", "e", ",", "What", "It", "it", "\u4e2d"),
)
VOCABULARIES = {
    "nothing said": {},
    "cased": {"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
    "accents stay": {"strip_accents": False, "do_lower_case": True},
    "no chinese": {"tokenize_chinese_chars": False, "model_max_length": 512},
    "other names": {"cls_token": "what", "sep_token": {"__type": "AddedToken", "content": "?"}},
}


@pytest.mark.parametrize("row", VOCABULARIES)
def test_a_vocabulary_without_a_tokenizer_is_read_as_transformers_does(row, tmp_path):
    model = make("bert")
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(VOCABULARIES[row]))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    texts = ["What is 47 + 85?", "caf\u00e9, It\u4e2d\u4e2d it", "", "[SEP] What[MASK]", "e\u0301\n\x00 47"]
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"]
        pair = theirs(text, texts[0])
        assert ours.encode_pair(text, texts[0], 99) == (pair["input_ids"], pair["token_type_ids"])
    with Coterie.open(tmp_path) as coterie:
        found = coterie.embed(texts[0])[0]
    rows = hidden(model, theirs(texts[0])["input_ids"])
    expected = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("said", "files"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, {}),
        ({"do_basic_tokenize": False}, {}),
        ({"additional_special_tokens": ["<e>"]}, {}),
        ({"extra_special_tokens": ["<e>"]}, {}),
        ({"bos_token": "<e>"}, {}),
        ({"added_tokens_decoder": {"30": {"content": "<e>"}}}, {}),
        ({"cls_token": "<s>"}, {}),
        ({}, {"added_tokens.json": "{}"}),
    ],
)
def test_a_vocabulary_to_which_there_is_more_is_refused(said, files, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    for name, text in {"tokenizer_config.json": json.dumps(said), **files}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=r"but vocab\.txt\); save the tokenizer as tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_that_is_larger_than_the_model_is_refused(tmp_path):
    make("bert", vocab_size=8).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json has vocab_size 8"):
        open_model(tmp_path)


@pytest.mark.parametrize("is_tanh", [True, False])
def test_dense_layers_stand_behind_the_pooling(is_tanh, tmp_path):
    model, rng = make("bert"), np.random.default_rng(1)
    folder = save(tmp_path / "vec", model, modules=("Transformer", "Pooling", "Dense", "Dense", "Normalize"))
    expected = hidden(model, TEXTS[0].encode())[0]
    for place, (width, out) in ((2, (40, 24)), (3, (24, 7))):
        own = folder / f"{place}_Dense"
        own.mkdir()
        tensors = {"linear.weight": rng.normal(size=(out, width)).astype(np.float32) * 0.2}
        if is_tanh:
            tensors["linear.bias"] = rng.normal(size=out).astype(np.float32)
        kind = "activation.Tanh" if is_tanh else "linear.Identity"
        config = {"in_features": width, "out_features": out, "activation_function": f"torch.nn.modules.{kind}"}
        (own / "config.json").write_text(json.dumps(config))
        save_file(tensors, own / "model.safetensors")
        expected = tensors["linear.weight"] @ expected + tensors.get("linear.bias", 0)
        expected = np.tanh(expected) if is_tanh else expected
    with Coterie.open(folder) as coterie:
        found = coterie.embed(TEXTS[0])[0]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=2e-4, atol=2e-5)
    config["out_features"] = 8
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"linear.weight has shape \[7, 24\]"):
        Coterie.open(folder)


@pytest.mark.parametrize("row", ["roberta", "mpnet", "nomic"])
def test_a_quantised_folder_keeps_what_stands_behind_the_model(row, tmp_path):
    """Tables whose rows are cut off, matrices that are joined, and the layers of a vector."""
    folder = save(tmp_path / "vec", make(row), modules=("Transformer", "Pooling", "Dense"))
    (folder / "2_Dense").mkdir()
    weight = np.random.default_rng(2).normal(size=(3, 40)).astype(np.float32)
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    config = {"in_features": 40, "out_features": 3, "activation_function": "torch.nn.Identity"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    packed = quantize_folder(folder, tmp_path / "packed", Packing(DType.Q8, DType.Q8)).folder
    with Coterie.open(folder) as whole, Coterie.open(packed) as quantised:
        plain, rounded = whole.embed(TEXTS), quantised.embed(TEXTS)
    assert rounded.shape == (3, 3)
    assert np.abs(plain - rounded).max() < 0.1 * np.abs(plain).max()
    assert not np.array_equal(plain, rounded)


def test_a_file_with_a_head_and_older_names_is_read_without_the_head(tmp_path):
    model = make("bert")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    older = {}
    for name, tensor in tensors.items():
        end = next((end for end in names if name.endswith(end)), "")
        older["bert." + (name.removesuffix(end) + names[end] if end else name)] = tensor
    older |= {"cls.predictions.bias": np.zeros(3, np.float32), "bert.embeddings.position_ids": np.arange(64)[None]}
    save_file(older, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    write_tokenizer(tmp_path)
    with Coterie.open(tmp_path) as coterie:
        np.testing.assert_allclose(
            coterie.embed(TEXTS[0])[0], wanted(model, TEXTS[0], "mean_tokens"), rtol=2e-4, atol=2e-5
        )


OLDER = {  # keys of released configs, and what they are called in those that transformers writes now
    "nomic": {
        **{"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size"},
        **{"n_inner": "intermediate_size", "n_positions": "max_position_embeddings"},
        "layer_norm_epsilon": "layer_norm_eps",
    },
    "modernbert": {},
}
ADDED = {
    "nomic": {
        **{"activation_function": "swiglu", "rotary_emb_base": 1000, "prenorm": False, "rotary_scaling_factor": None},
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    },
    "modernbert": {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
}


@pytest.mark.parametrize("row", OLDER)
def test_configs_as_they_were_released_mean_the_same(row, tmp_path):
    make(row).save_pretrained(tmp_path)
    key = open_model(tmp_path).key
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("rope_parameters", "layer_types", "hidden_act", "sliding_window"):
        config.pop(name, None)
    older = {old: config.pop(new) for old, new in OLDER[row].items()}
    (tmp_path / "config.json").write_text(json.dumps({**config, **older, **ADDED[row]}))
    assert open_model(tmp_path).key == key

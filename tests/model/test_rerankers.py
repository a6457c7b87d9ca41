"""Rerankers agree with transformers: scores of pairs, whose texts the tokenizer puts together."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tests.model.test_encoders import BASE, MODERN, ROWS
from tests.system.tiny import write_tokenizer

from coterie.api import Coterie, Options
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError
from coterie.engine.policy import Policy
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

CAUSAL = {
    **{"num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    **{"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256},
}
MODELS = {
    **{
        name: ROWS[name]
        for name in ("bert", "bert-one-head", "roberta", "xlm-roberta", "mpnet", "jina-v3", "gte", "modernbert")
    },
    "modernbert-mean": ("ModernBert", {**MODERN, "classifier_pooling": "mean", "classifier_bias": True}),
    **{name.lower(): (name, CAUSAL) for name in ("Qwen3", "Qwen2", "Llama", "Mistral", "Gemma2")},
    "gemma3": ("Gemma3Text", {**CAUSAL, "query_pre_attn_scalar": 12, "sliding_window": 16}),
}
QUERY = "What is 47 plus 85?"
DOCUMENTS = ("47 and 85 make 132.", "x", "Roman numerals have no zero. " * 2, "", "132" * 30)
BERT_WAY = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTA_WAY = ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]")


def make(row, **more):
    """A random model of one label, whose norms and biases are no ones and zeros."""
    name, own = MODELS[row]
    torch.manual_seed(7)
    config = getattr(transformers, f"{name}Config")(**{**BASE, **own, "num_labels": 1, **more})
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    for name, parameter in model.named_parameters():
        scale = 0.1 if "pooler" in name or "classifier.dense" in name else 0.3  # a tanh that is not all ones
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, scale)
    return model


def save(folder, model, way=(), **config):
    """A folder as CrossEncoder saves it; `way`: how one text and two are put together."""
    model.save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 60}))
    if way:
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        marks = [("[CLS]", 3), ("[SEP]", 2)]
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single=way[0], pair=way[1], special_tokens=marks
        )
        library.save(str(folder / "tokenizer.json"))
    if config:
        whole = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**whole, **config}))
    return folder


def way_of(row):
    return (
        BERT_WAY
        if row.startswith("bert")
        else ROBERTA_WAY
        if any(n in row for n in ("roberta", "mpnet", "jina", "modern", "gte"))
        else ()
    )


def inputs_of(document, way, most=60, query=QUERY):
    """Ids and types, put together by hand: a byte is a token; of the document as much as there is room for."""
    first, second = list(query.encode()), list(document.encode())
    around = len(way[1].split()) - 2 if way else 0
    second = second[: most - len(first) - around]
    if way == BERT_WAY:
        return [3, *first, 2, *second, 2], [0] * (len(first) + 2) + [1] * (len(second) + 1)
    return ([3, *first, 2, 2, *second, 2] if way else first + second), None


def logit(model, document, way):
    ids, types = inputs_of(document, way)
    more = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.no_grad():
        return model(torch.tensor([ids]), **more).logits[0, 0].item()


def raw(coterie, **more):
    """Scores in the order of documents, before any sigmoid."""
    found = {one.index: one.score for one in coterie.rerank(QUERY, DOCUMENTS, **more)}
    return np.array([found[place] for place in range(len(DOCUMENTS))])


@pytest.mark.parametrize("row", MODELS)
def test_scores_are_the_logits_of_transformers(row, tmp_path):
    model, way = make(row), way_of(row)
    folder = save(tmp_path / "r", model, way, sentence_transformers={"activation_fn": "torch.nn.Identity"})
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = np.array([logit(theirs, document, way) for document in DOCUMENTS])
    with Coterie.open(folder, Options(policy=Policy(max_batch=4, max_step_tokens=90))) as coterie:
        found = raw(coterie)
        assert np.abs(found - wanted).max() < 1e-4 * np.ptp(wanted)
        order = [one.index for one in coterie.rerank(QUERY, DOCUMENTS)]
        assert order == sorted(range(len(DOCUMENTS)), key=lambda place: -wanted[place])
        np.testing.assert_allclose(coterie.rerank(QUERY, DOCUMENTS[:1])[0].score, found[0], rtol=1e-6)
    assert open_model(folder).head is not None


def test_decoders_pass_over_what_fills_texts_up(tmp_path):
    """As transformers takes the last token that is none: here the end token is one, too."""
    model = make("qwen3")
    folder = save(tmp_path / "r", model)
    with Coterie.open(folder) as coterie:
        found = [one.score for one in coterie.rerank(QUERY, ["132", "132<|end|>", "132<|end|><|end|>"])]
    ids = inputs_of("132", ())[0]
    with torch.no_grad():
        theirs = torch.sigmoid(model(torch.tensor([[*ids, 256, 256]])).logits[0, 0]).item()
    np.testing.assert_allclose(found, [theirs] * 3, rtol=1e-5)


IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}
SIGMOID = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
ASK = {"prompts": {"ask": "ask: "}, "default_prompt_name": "ask"}
SAID = {
    "nothing": ({}, {}, True),
    "sentence_transformers": ({"sentence_transformers": IDENTITY}, {}, False),
    "older": ({"sbert_ce_default_activation_function": IDENTITY["activation_fn"]}, {}, False),
    "own file first": ({"sentence_transformers": IDENTITY}, {**SIGMOID, **ASK}, True),
}


@pytest.mark.parametrize("row", SAID)
def test_files_say_whether_a_sigmoid_is_taken_and_what_stands_before_a_query(row, tmp_path):
    config, own, is_sigmoid = SAID[row]
    model = make("bert")
    folder = save(tmp_path / "r", model, BERT_WAY, **config)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    asked = ("ask: " if own else "") + QUERY
    ids, types = inputs_of(DOCUMENTS[0], BERT_WAY, query=asked)
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, 0]
    with Coterie.open(folder) as coterie:
        (found,) = coterie.rerank(QUERY, DOCUMENTS[:1])
    np.testing.assert_allclose(found.score, (torch.sigmoid(wanted) if is_sigmoid else wanted).item(), rtol=2e-6)


def test_types_of_a_pair_are_given_where_the_tokenizer_gives_them(tmp_path):
    model = make("bert")
    folder = save(tmp_path / "r", model, BERT_WAY)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_input_names": ["input_ids", "attention_mask"]}))
    ids, types = inputs_of(DOCUMENTS[0], BERT_WAY)
    with torch.no_grad():
        untold, told = [
            torch.sigmoid(model(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits[0, 0]).item()
            for kinds in ([0] * len(ids), types)
        ]
    with Coterie.open(folder) as coterie:
        (found,) = coterie.rerank(QUERY, DOCUMENTS[:1])
    np.testing.assert_allclose(found.score, untold, rtol=2e-6)
    assert abs(told - untold) > 1e-4


def test_tensors_may_be_named_as_before_transformers_had_the_class(tmp_path):
    folder = save(tmp_path / "r", make("gte"), ROBERTA_WAY)
    with Coterie.open(folder) as coterie:
        found = raw(coterie)
    tensors = load_file(folder / "model.safetensors")
    older = {name.replace("gte.", "new.", 1): tensor for name, tensor in tensors.items()}
    assert older.keys() != tensors.keys()
    save_file(older, folder / "model.safetensors")
    with Coterie.open(folder) as coterie:
        np.testing.assert_array_equal(raw(coterie), found)


@pytest.mark.parametrize("row", ["bert", "roberta", "gte", "modernbert", "qwen3"])
def test_a_quantised_folder_keeps_its_head(row, tmp_path):
    folder = save(tmp_path / "r", make(row), way_of(row), sentence_transformers={"activation_fn": "torch.nn.Identity"})
    packed = quantize_folder(folder, tmp_path / "packed", Packing(DType.Q8, DType.Q8)).folder
    with Coterie.open(folder) as whole, Coterie.open(packed) as quantised:
        plain, rounded = raw(whole), raw(quantised)
    assert 0 < np.abs(plain - rounded).max() < 0.3 * np.abs(plain).max()


def test_a_query_that_leaves_no_room_is_refused(tmp_path):
    with Coterie.open(save(tmp_path / "r", make("bert"), BERT_WAY)) as coterie:
        assert len(coterie.rerank("y" * 56, ["z" * 9])) == 1
        with pytest.raises(RequestError, match="has 57 tokens, and with a document the expert reads 60"):
            coterie.rerank("y" * 57, ["z"])
        with pytest.raises(RequestError, match="scores documents"):
            coterie.embed("y")
        with pytest.raises(RequestError, match="scores documents"):
            coterie.ask("y")


def test_a_reranker_in_alibabas_own_folder_is_gte(tmp_path):
    folder = save(tmp_path / "r", make("gte"), ROBERTA_WAY)
    with Coterie.open(folder) as coterie:
        found = raw(coterie)
    config = json.loads((folder / "config.json").read_text())
    kind = "NewForSequenceClassification"
    config |= {"model_type": "new", "architectures": [kind], "rope_theta": config.pop("rope_parameters")["rope_theta"]}
    config["auto_map"] = {"AutoModelForSequenceClassification": f"a/b--modeling.{kind}"}
    (folder / "config.json").write_text(json.dumps(config))
    with Coterie.open(folder) as coterie:
        np.testing.assert_array_equal(raw(coterie), found)


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({"classifier_pooling": "max"}, UnsupportedError, "classifier_pooling is 'max'"),
        ({"classifier_activation": "relu"}, UnsupportedError, "classifier_activation is 'relu'"),
        ({"auto_map": {"AutoModelForSequenceClassification": "a--b.C"}}, UnsupportedError, "code of its own"),
        ({"architectures": ["ModernBertForTokenClassification"]}, UnsupportedError, "more than give vectors"),
    ],
)
def test_what_is_not_run_is_refused_by_name(config, error, said, tmp_path):
    folder = save(tmp_path / "r", make("modernbert"), **config)
    with pytest.raises(error, match=said):
        open_model(folder)


def test_heads_of_other_shapes_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="has a head of 3 labels"):
        open_model(save(tmp_path / "three", make("bert", num_labels=3)))
    missing, other = r"tensor classifier.weight, of the head that scores, is missing", r"shape \[1, 7\] behind 40"
    for place, (tensor, error) in enumerate(((None, missing), ((1, 7), other))):
        folder = save(tmp_path / str(place), make("bert"))
        tensors = load_file(folder / "model.safetensors")
        del tensors["classifier.weight"]
        more = {} if tensor is None else {"classifier.weight": np.zeros(tensor, np.float32)}
        save_file(tensors | more, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=error):
            open_model(folder)
    folder = save(tmp_path / "relu", make("bert"), sentence_transformers={"activation_fn": "torch.nn.ReLU"})
    with pytest.raises(UnsupportedError, match=r"activation_fn is 'torch.nn.ReLU'"):
        Coterie.open(folder)

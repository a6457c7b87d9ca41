"""Vectors agree with the hidden states of transformers: rows of the last norm, of many families, on every backend."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tests.model import tiny
from tests.model.runner import BACKENDS, Stepper, chunks
from tests.model.theirs import prompt_of, relative_error
from tests.system.tiny import write_tokenizer

from coterie.api import Coterie, Options
from coterie.core.errors import RequestError, UnsupportedError
from coterie.engine.policy import Policy
from coterie.graph.vectors import vectors_graph
from coterie.models.model import open_model

NORM = "head/norm"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "phi", "olmo2", "cohere", "mixtral", "deepseek-v3", "qwen3.5", "lfm2")
FAMILIES += ("granite4-h", "falcon-h1", "nemotron-h", "mamba2")
ROWS = [row for row in FAMILIES if row in tiny.FAMILY_ROWS]
TEXTS = ("What is 47 plus 85?", "x", "Write 149 in Roman numerals, please: " * 3)


def hidden(model, ids):
    """What transformers has behind the last norm, [T, D]."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).last_hidden_state[0].numpy()


def rows_of(backend, step):
    """The rows that a step leaves, before anybody makes a vector of them."""
    if hasattr(backend, "device"):
        return np.array(backend.device.inspect(backend._inspected, backend.binding(step))[NORM])
    return backend._run(step)[NORM]


def test_families_are_there():
    assert len(ROWS) >= 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS)
def test_rows_are_the_hidden_states_of_transformers(row, backend, folder_of, make_backend):
    folder = folder_of(row)
    model = open_model(folder)
    bare = replace(model, graph=vectors_graph(model.graph))
    prompt = prompt_of(model.config.vocab_size)
    stepper = Stepper(make_backend(backend, bare))
    sequence = stepper.sequence()
    found = [rows_of(stepper.backend, stepper.rows((sequence, piece))) for piece in chunks(prompt, 17)]
    assert relative_error(np.concatenate(found), hidden(tiny.load(folder, "fp32").base_model, prompt)) <= 1e-4


def save_sentence_model(folder, prefix, pooling, normalized=True, **config):
    """A tiny Qwen3 that gives vectors alone, as sentence-transformers saves one; `prefix`: names as a whole model's."""
    row = {**tiny.BASE, "vocab_size": 259, "head_dim": 12, "tie_word_embeddings": True, **config}
    torch.manual_seed(3)
    model = transformers.Qwen3Model(transformers.Qwen3Config(**row))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    if prefix:
        whole = transformers.Qwen3ForCausalLM(model.config)
        whole.model = model
        whole.tie_weights()
        whole.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    write_tokenizer(folder)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalized else [])]
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": True, **modes}))
    prompts = {"prompts": {"query": "Ask: ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def wanted(folder, text, pooling, normalized=True):
    rows = hidden(transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), text.encode())
    found = rows[-1] if pooling == "lasttoken" else rows.mean(axis=0)
    return found / np.linalg.norm(found) if normalized else found


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentence_model_gives_what_its_files_say(prefix, pooling, normalized, tmp_path):
    folder = save_sentence_model(tmp_path / "vec", prefix, pooling, normalized)
    with Coterie.open(folder, Options(policy=Policy(max_batch=4, max_step_tokens=19))) as coterie:
        found = coterie.embed(TEXTS)
        for text, vector in zip(TEXTS, found, strict=True):
            np.testing.assert_allclose(vector, wanted(folder, text, pooling, normalized), rtol=2e-4, atol=2e-5)
        np.testing.assert_array_equal(coterie.embed(TEXTS[1]), found[1:2])
        queries = coterie.embed(TEXTS[:1], use="query")
        np.testing.assert_allclose(
            queries[0], wanted(folder, "Ask: " + TEXTS[0], pooling, normalized), rtol=2e-4, atol=2e-5
        )
        np.testing.assert_array_equal(coterie.embed(TEXTS[:1], use="document"), found[:1])
        first = coterie.embed(TEXTS[:1], dimensions=7)[0]
        np.testing.assert_allclose(first, found[0, :7] / np.linalg.norm(found[0, :7]), rtol=1e-5)
        with pytest.raises(RequestError, match="query, document"):
            coterie.embed("a", use="answer")
        with pytest.raises(RequestError, match=r"only gives vectors"):
            coterie.ask("What is 47 plus 85?")


@pytest.mark.parametrize(
    ("config", "file", "content", "said"),
    [
        ({}, "1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by max_tokens"),
        ({}, "1_Pooling/config.json", {"pooling_mode": "max"}, "pools by max"),
        ({}, "1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        ({}, "modules.json", [{"type": "a.Transformer"}, {"type": "a.b.LSTM", "path": "2_LSTM"}], "module LSTM"),
        ({}, "modules.json", [{"type": "a.Normalize"}, {"type": "a.Pooling"}], "module Pooling behind Normalize"),
        ({"is_causal": False}, "", {}, "is_causal is false"),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "", {}, "code of its own"),
    ],
)
def test_what_would_give_other_vectors_is_refused_by_name(config, file, content, said, tmp_path):
    folder = save_sentence_model(tmp_path / "vec", False, "lasttoken")
    if config:
        own = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**own, **config}))
    if file:
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match=said):
        Coterie.open(folder)


def test_newer_files_name_their_pooling_by_a_word(tmp_path):
    folder = save_sentence_model(tmp_path / "vec", False, "lasttoken")
    last = {}
    for word in ("lasttoken", "mean"):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": word, "include_prompt": True}))
        with Coterie.open(folder) as coterie:
            last[word] = coterie.embed(TEXTS[0])[0]
    np.testing.assert_allclose(last["lasttoken"], wanted(folder, TEXTS[0], "lasttoken"), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(last["mean"], wanted(folder, TEXTS[0], "mean_tokens"), rtol=2e-4, atol=2e-5)

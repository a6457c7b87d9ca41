"""Rerankers that score by the logits of tokens, "yes" and "no" say, as LogitScore of sentence-transformers does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from tests.model.test_encoders import BASE
from tests.model.test_rerankers import CAUSAL, DOCUMENTS, QUERY, raw
from tests.system.tiny import write_tokenizer

from coterie.api import Coterie
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

YES, NO = ord("y"), ord("n")
FLAT = (
    "<|user|>{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first }}|"
    "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}|"
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|answer|>!"
)
PARTS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content[0].text }};{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
MOST = 64


def make(folder, family="Qwen3", template=FLAT, score=(YES, NO), reading=None, own=None, **more):
    """A random model, and a folder as CrossEncoder saves it."""
    torch.manual_seed(9)
    config = getattr(transformers, f"{family}Config")(**{**BASE, **CAUSAL, **more})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": MOST}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    kinds = [{"path": "", "type": "a.Transformer"}, {"path": "1_LogitScore", "type": "a.LogitScore"}]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_LogitScore").mkdir()
    said = {"true_token_id": score[0], "false_token_id": score[1]}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(said))
    own = {"activation_fn": "torch.nn.modules.linear.Identity", **(own or {})}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    (folder / "sentence_bert_config.json").write_text(json.dumps(reading or {}))
    return model


def logits(model, ids, score=(YES, NO)):
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0, -1]
    return (found[score[0]] - (0 if score[1] is None else found[score[1]])).item()


def flat_ids(document, prompt=""):
    before, behind = [257, *f"{prompt}|{QUERY}|".encode()], [258, *b"!"]
    return [*before, *document.encode()[: MOST - len(before) - len(behind)], *behind]


@pytest.mark.parametrize("score", [(YES, NO), (YES, None)])
@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_the_logits_of_two_tokens_or_one(score, tied, tmp_path):
    model = make(tmp_path / "r", score=score, tie_word_embeddings=tied)
    wanted = np.array([logits(model, flat_ids(document), score) for document in DOCUMENTS])
    with Coterie.open(tmp_path / "r") as coterie:
        assert np.abs(raw(coterie) - wanted).max() < 1e-4 * np.ptp(wanted)
        with pytest.raises(RequestError, match="scores documents"):
            coterie.ask("y")
        with pytest.raises(RequestError, match="tokens without a document, and the expert reads 64"):
            coterie.rerank("y" * 70, ["z"])


def test_a_prompt_is_what_the_system_says(tmp_path):
    own = {"prompts": {"web": "find"}, "default_prompt_name": "web"}
    model = make(tmp_path / "r", own=own)
    with Coterie.open(tmp_path / "r") as coterie:
        (found,) = coterie.rerank(QUERY, DOCUMENTS[:1])
    np.testing.assert_allclose(found.score, logits(model, flat_ids(DOCUMENTS[0], "find")), rtol=1e-4)


def test_messages_may_be_lists_of_parts_and_templates_have_other_variables(tmp_path):
    reading = {
        "modality_config": {"message": {"format": "structured"}},
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
    }
    model = make(tmp_path / "r", template=PARTS, reading=reading)
    with Coterie.open(tmp_path / "r") as coterie:
        (found,) = coterie.rerank(QUERY, DOCUMENTS[:1])
    ids = list(f"query:{QUERY};document:{DOCUMENTS[0]};>".encode())
    np.testing.assert_allclose(found.score, logits(model, ids), rtol=1e-4)


@pytest.mark.parametrize(("template", "reading"), [("", {}), (FLAT, {"modality_config": {"text": {}}})])
def test_without_a_chat_two_texts_are_put_together_by_the_tokenizer(template, reading, tmp_path):
    model = make(tmp_path / "r", template=template, reading=reading)
    with Coterie.open(tmp_path / "r") as coterie:
        (found,) = coterie.rerank(QUERY, DOCUMENTS[:1])
    np.testing.assert_allclose(found.score, logits(model, list((QUERY + DOCUMENTS[0]).encode())), rtol=1e-4)


def test_a_document_is_cut_by_letters_of_several_tokens(tmp_path):
    """A letter of three bytes is left out whole where there is no room for all of it."""
    model = make(tmp_path / "r")
    room = MOST - len(flat_ids(""))
    with Coterie.open(tmp_path / "r") as coterie:
        cut, short = [coterie.rerank(QUERY, ["\u20ac" * count])[0].score for count in (200, room // 3)]
    assert cut == short
    np.testing.assert_allclose(cut, logits(model, flat_ids("\u20ac" * (room // 3))), rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_folder_keeps_the_rows_that_score(tied, tmp_path):
    make(tmp_path / "r", tie_word_embeddings=tied)
    packed = quantize_folder(tmp_path / "r", tmp_path / "packed", Packing(DType.Q8, DType.Q8)).folder
    with Coterie.open(tmp_path / "r") as whole, Coterie.open(packed) as quantised:
        plain, rounded = raw(whole), raw(quantised)
    assert 0 < np.abs(plain - rounded).max() < 0.2 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"template": "{% for m in messages %}{% endfor %}x"}, UnsupportedError, "roles are query and document"),
        ({"template": "", "reading": {"modality_config": {"message": {}}}}, UnsupportedError, "no chat template"),
        ({"score": (259, NO)}, CheckpointError, "true_token_id of LogitScore is 259"),
        ({"score": (None, NO)}, CheckpointError, "true_token_id of LogitScore is None"),
        ({"score": (YES, -1)}, CheckpointError, "false_token_id of LogitScore is -1"),
        ({"family": "Gemma2"}, UnsupportedError, "does more than multiply"),
        ({"family": "Granite", "logits_scaling": 2.0}, UnsupportedError, "does more than multiply"),
    ],
)
def test_what_is_not_run_is_refused_by_name(given, error, said, tmp_path):
    make(tmp_path / "r", **given)
    with pytest.raises(error, match=said):
        Coterie.open(tmp_path / "r").close()


def test_other_modules_behind_a_head_are_refused(tmp_path):
    make(tmp_path / "r")
    kinds = [
        {"path": "", "type": "a.Transformer"},
        {"path": "", "type": "a.LogitScore"},
        {"path": "", "type": "a.Dense"},
    ]
    (tmp_path / "r" / "modules.json").write_text(json.dumps(kinds))
    (tmp_path / "r" / "config.json").rename(tmp_path / "kept")
    whole = json.loads((tmp_path / "kept").read_text())
    (tmp_path / "r" / "config.json").write_text(json.dumps({**whole, "true_token_id": YES, "false_token_id": NO}))
    assert open_model(tmp_path / "r").gives == "scores"
    with pytest.raises(UnsupportedError, match="has a module Dense"):
        Coterie.open(tmp_path / "r").close()

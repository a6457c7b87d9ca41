"""What lies beside the weights is read anew too: a tokenizer, a head in a file of its own, a dense layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.system.test_rescan import PROMPT, UNCHANGED, alone
from tests.system.tiny import write_expert, write_reranker

from coterie.api import Coterie, Query


def test_what_lies_beside_the_weights_is_read_anew(office: Path) -> None:
    """A template, end tokens or sampling alone: the weights stay where they are, pinned and with KV state."""
    ada = office / "ada"
    with Coterie.open(office) as coterie:
        before = coterie.ask(Query.text(PROMPT, "ada"))
        coterie.pin("ada")
        (ada / "chat_template.jinja").write_text("{% for m in messages %}Now {{ m['content'] }}{% endfor %}")
        assert coterie.rescan().to_dict() == UNCHANGED | {"renewed": ["ada"]}
        assert coterie.status().expert("ada").pinned
        assert coterie.status().expert("ada").state == "resident"
        after = coterie.ask(Query.text(PROMPT, "ada"))
        assert (after.hit, after.prompt_tokens) == (True, len("Now ") + len(PROMPT))
        assert after.token_ids == alone(ada)
        (ada / "chat_template.jinja").unlink()
        assert coterie.rescan().renewed == ("ada",)
        again = coterie.ask(Query.text(PROMPT, "ada"))
        assert again.token_ids == before.token_ids
        assert again.cached_tokens > 0
        (ada / "generation_config.json").write_text('{"eos_token_id": [256, 7], "do_sample": true}')
        assert coterie.rescan().renewed == ("ada",)
        assert coterie.models["ada"].end_ids == (256, 7)
        assert coterie.models["ada"].advised.sampling.temperature == 1.0
        (ada / "generation_config.json").write_text("{")
        (ada / "chat_template.jinja").write_text("{{")
        assert "not valid JSON" in str(coterie.rescan().kept["ada"])
        assert coterie.models["ada"].end_ids == (256, 7)  # it stays as it was


def test_a_tokenizer_alone_is_read_anew(office: Path) -> None:
    tokenizer = office / "ada" / "tokenizer.json"
    with Coterie.open(office) as coterie:
        before = coterie.ask(Query.text(PROMPT, "ada"))
        said = json.loads(tokenizer.read_text())
        said["added_tokens"] = said["added_tokens"][:1]  # the template's marks are letters now
        tokenizer.write_text(json.dumps(said))
        assert coterie.rescan().renewed == ("ada",)
        after = coterie.ask(Query.text(PROMPT, "ada"))
        assert after.prompt_tokens > before.prompt_tokens
        assert after.token_ids == alone(office / "ada")
        assert coterie.rescan().renewed == ()


def shard_head(judge: Path) -> Path:
    """A file of a reranker's head alone, which is taken out of that with all weights."""
    whole, head = judge / "model.safetensors", judge / "model-00002-of-00002.safetensors"
    tensors = load_file(whole)
    own = {name: tensors.pop(name) for name in list(tensors) if name.startswith("classifier.")}
    save_file(tensors, whole.rename(judge / "model-00001-of-00002.safetensors"))
    save_file(own, head)
    names = {**dict.fromkeys(tensors, "model-00001-of-00002.safetensors"), **dict.fromkeys(own, head.name)}
    (judge / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return head


def test_a_head_in_a_file_of_its_own_is_read_anew(tmp_path: Path) -> None:
    judge = write_reranker(tmp_path / "judges" / "judge", 3)
    documents = ["for ada", "for bob"]
    with Coterie.open(judge) as alone:
        expected = alone.rerank(PROMPT, documents)
    head = shard_head(judge)
    with Coterie.open(judge.parent) as coterie:
        assert coterie.rerank(PROMPT, documents) == expected
        assert coterie.rescan().renewed == ()
        save_file({name: -value for name, value in load_file(head).items()}, head)
        assert coterie.rescan().renewed == ("judge",)
        assert coterie.status().expert("judge").state != "absent"  # its weights are those that were there
        turned = {one.index: 1 - one.score for one in coterie.rerank(PROMPT, documents)}
        assert turned == pytest.approx({one.index: one.score for one in expected})
        head.unlink()
        assert "model-00002-of-00002.safetensors" in str(coterie.rescan().kept["judge"])
        assert {one.index: 1 - one.score for one in coterie.rerank(PROMPT, documents)} == turned


def test_a_dense_layer_behind_an_embedding_is_read_anew(tmp_path: Path) -> None:
    ada = write_expert(tmp_path / "office" / "ada", 3)
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds]
    (ada / "modules.json").write_text(json.dumps(modules))
    for folder, config in (
        ("1_Pooling", {"pooling_mode_mean_tokens": True}),
        ("2_Dense", {"in_features": 32, "out_features": 2, "bias": False, "activation_function": "Identity"}),
    ):
        (ada / folder).mkdir()
        (ada / folder / "config.json").write_text(json.dumps(config))
    layer = ada / "2_Dense" / "model.safetensors"
    weight = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    save_file({"linear.weight": weight}, layer)
    with Coterie.open(ada.parent) as coterie:
        before = coterie.embed(PROMPT, "ada")
        save_file({"linear.weight": -weight}, layer)
        assert coterie.rescan().renewed == ("ada",)
        np.testing.assert_array_equal(coterie.embed(PROMPT, "ada"), -before)

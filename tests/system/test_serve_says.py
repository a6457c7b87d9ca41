"""What `coterie serve` prints when it begins: a question that is worth asking what it serves."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.system.commands import run
from tests.system.tiny import write_tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from coterie.api import Coterie
from coterie.cli.serve import DOCUMENTS, EXAMPLE, OF_DEMO, _say, example_of
from coterie.composition.composition import load_composition
from coterie.server.app import make_app
from coterie.server.response_store import DEFAULT_BYTES

TINY = {
    **{"vocab_size": 259, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "max_position_embeddings": 64, "num_labels": 1},
}
ROOT = Path(__file__).resolve().parents[2]


def test_the_question_is_one_that_is_answered_there(folder: Path, composition: Path) -> None:
    assert example_of(load_composition("demo")) == OF_DEMO
    assert example_of(load_composition(folder)) == example_of(load_composition(composition)) == EXAMPLE
    knn = load_composition(ROOT / "examples" / "knn.toml")
    first = next(one for one in knn.router.examples if one.expert != knn.router.fallback)
    assert example_of(knn) == first.text


def test_the_line_asks_who_chooses_or_else_an_expert(
    folder: Path, composition: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, model in ((composition, "four"), (folder, "ada"), (folder / "ada", "ada")):
        with Coterie.open(what) as coterie:
            _say(coterie, ("127.0.0.1", 8000), ["key"], [])
        (line,) = re.findall("^try: (.*)$", capsys.readouterr().out, re.MULTILINE)
        words = shlex.split(line)
        assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/chat/completions"]
        assert json.loads(words[-1]) == {"model": model, "messages": [{"role": "user", "content": EXAMPLE}]}
        assert "Authorization: Bearer $COTERIE_API_KEY" in words


def test_memory_for_stored_responses_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the lines of the slabs: it is part of none of them."""
    with Coterie.open(folder) as coterie:
        for size, said in ((DEFAULT_BYTES, ["at most 64.00 MiB besides"]), (0, [])):
            _say(coterie, ("127.0.0.1", 8000), stored_bytes=size)
            out = capsys.readouterr().out
            assert "for KV" in out
            assert re.findall("^stored responses, .*: (.*) \\(--response-store\\)$", out, re.MULTILINE) == said
    assert "at most 64.00 MiB besides" in run("check", folder).stdout


def test_of_encoders_and_rerankers_it_asks_for_what_they_give(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An expert that answers is asked first, wherever it stands; the question of the others is answered there."""
    for name, kind in ("ab", BertModel), ("bc", BertModel), ("yes", BertForSequenceClassification):
        kind(BertConfig(**TINY)).save_pretrained(tmp_path / "all" / name)
        write_tokenizer(tmp_path / "all" / name)
    (tmp_path / "alone").mkdir()
    shutil.copytree(tmp_path / "all" / "yes", tmp_path / "alone" / "yes")
    shutil.copytree(tmp_path / "all", tmp_path / "mixed")
    shutil.copytree(folder / "ada", tmp_path / "mixed" / "zoe")
    texts = {"/v1/embeddings": {"input": EXAMPLE}, "/v1/rerank": {"query": EXAMPLE, "documents": DOCUMENTS}}
    texts["/v1/chat/completions"] = {"messages": [{"role": "user", "content": EXAMPLE}]}
    asked = (("all", "ab", "embeddings"), ("alone", "alone", "rerank"), ("mixed", "zoe", "chat/completions"))
    for what, model, path in asked:
        with Coterie.open(tmp_path / what) as coterie:
            _say(coterie, ("127.0.0.1", 8000), [], [])
            (line,) = re.findall("^try: (.*)$", capsys.readouterr().out, re.MULTILINE)
            words = shlex.split(line)
            assert words[2] == f"http://127.0.0.1:8000/v1/{path}"
            assert json.loads(words[-1]) == {"model": model, **texts[f"/v1/{path}"]}
            with TestClient(make_app(coterie)) as client:
                assert client.post(f"/v1/{path}", json=json.loads(words[-1])).status_code == 200

"""How adapters and their bases are named: in files, folders and tables, and what is told where one cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.system.adapting import greedy, trained_on
from tests.system.commands import refused, run
from tests.system.tiny import TEMPLATE

from coterie import Coterie
from coterie.cli.options import short_base
from coterie.core.errors import TransferError
from coterie.models.model import open_model


def test_files_name_bases_in_every_way(experts: Path, tmp_path: Path) -> None:
    """Two bases, one of them no expert; one packed; by `base`, by `adapter`, and as the adapter itself says."""
    shutil.copytree(experts, tmp_path / "models")
    assert run("quantize", experts / "base", tmp_path / "packed", "--bits", "8").exit_code == 0
    trained_on(tmp_path / "models" / "tax", "models/base")
    path = tmp_path / "office.toml"
    path.write_text("""
name = "office"
[router]
kind = "rules"
fallback = "general"
[[router.rule]]
expert = "sql"
keywords = ["rows"]
[[expert]]
name = "sql"
checkpoint = "models/sql"
base = "packed"
[[expert]]
name = "tax"
checkpoint = "models/tax"
[[expert]]
name = "german"
checkpoint = "models/base"
adapter = "models/german"
[[expert]]
name = "general"
checkpoint = "models/base"
""")
    checked = json.loads(run("check", path, "--json").stdout)
    packed = str(tmp_path / "packed")
    bases = {name: expert["base"] for name, expert in checked["experts"].items()}
    assert bases == {"sql": packed, "tax": "general", "german": "general", "general": ""}
    assert checked["base_bytes"].keys() == {packed, "general"}
    sizes = {name: expert["weight_bytes"] for name, expert in checked["experts"].items()}
    assert checked["near_bytes"] == sizes["sql"] + sizes["tax"] + sizes["german"]
    said = run("check", path).stdout
    assert "base general: 68.00 KiB, always in dram, of 2 experts" in said
    asked = run("run", path, "--max-tokens", "3", "--json", "how many rows?", "hello", "@german hello")
    assert [json.loads(line)["expert"] for line in _objects(asked.stdout)] == ["sql", "general", "german"]
    merged = run("merge", path, tmp_path / "out")
    refused(merged, "packed", "is quantised")
    path.write_text(path.read_text().replace('base = "packed"', 'base = "models/base"'))
    assert run("merge", path, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "tax" / "model.safetensors").is_file()
    assert json.loads(run("check", tmp_path / "out", "--json").stdout)["base_bytes"] == {}


def _objects(text: str) -> list[str]:
    """JSON objects, printed one behind the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        value, at = decoder.raw_decode(text, at)
        found += [json.dumps(one) for one in (value if isinstance(value, list) else [value])]
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def test_an_adapters_own_files_win(experts: Path, tmp_path: Path) -> None:
    """Tokenizer, template and end tokens, each by itself; else they are the base's."""
    for name in ("base", "sql"):
        shutil.copytree(experts / name, tmp_path / name)
    adapter = tmp_path / "sql"
    with Coterie.open(tmp_path) as coterie:
        assert coterie.texts["sql"].tokenizer is coterie.texts["base"].tokenizer
        assert coterie.texts["sql"].template is not None
        assert coterie.models["sql"].end_ids == (256,)
        plain = coterie.ask(greedy("hi", "sql")).prompt_tokens
    (adapter / "chat_template.jinja").write_text(TEMPLATE.replace("<|answer|>", "answer: {{ eos_token }}"))
    (adapter / "generation_config.json").write_text('{"eos_token_id": [3, 256]}')
    with Coterie.open(tmp_path) as coterie:
        assert coterie.ask(greedy("hi", "sql")).prompt_tokens == plain + len("answer: ")
        assert coterie.ask(greedy("hi", "base")).prompt_tokens == plain
        assert coterie.models["sql"].end_ids == (3, 256)
    text = json.loads((tmp_path / "base" / "tokenizer.json").read_text())
    text["added_tokens"] = text["added_tokens"][:1]
    (adapter / "tokenizer.json").write_text(json.dumps(text))
    with Coterie.open(tmp_path) as coterie:
        assert coterie.texts["sql"].tokenizer is not coterie.texts["base"].tokenizer
        assert coterie.ask(greedy("hi", "sql")).prompt_tokens > plain + len("answer: ")


def test_a_base_that_cannot_be_read_is_told_at_the_start(
    experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "sql"):
        shutil.copytree(experts / name, tmp_path / name)
    opened = open_model

    def open_and_break(path: Path, name: str = "") -> object:
        found = opened(path, name)
        with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
            file.truncate(8192)
        return found

    monkeypatch.setattr("coterie.engine.experts.open_model", open_and_break)
    with pytest.raises(TransferError, match=r"base/model\.safetensors"):
        Coterie.open(tmp_path)
    refused(run("run", tmp_path, "--expert", "sql", "a"), "model.safetensors")


@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ("", ""),
        ("team/base", "team/base"),
        ("/models/llama", "llama"),
        ("/hub/models--me--a--b/snapshots/c0", "me/a--b"),
    ],
)
def test_tables_name_a_base_shortly(base: str, shown: str) -> None:
    assert short_base(base) == shown

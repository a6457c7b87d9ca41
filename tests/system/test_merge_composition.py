"""A composition file with adapters becomes a folder of experts and a file that names them, which is served."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from tests.system.commands import refused, run
from tests.system.tiny import CONFIG, write_adapter, write_expert

from coterie.composition import merge
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.fine_tunes.merged import Merged

OFFICE = """
name = "office"
[router]
kind = "rules"
fallback = "general"
[[router.rule]]
expert = "sql"
keywords = ["table"]
[[expert]]
name = "sql"
checkpoint = "models/base"
adapter = "adapters/sql"
description = "English to SQL: \\"rows\\""
[[expert]]
name = "german"
checkpoint = "models/base"
adapter = "adapters/german"
[[expert]]
name = "general"
checkpoint = "models/base"
"""


@pytest.fixture
def office(tmp_path: Path) -> Path:
    """A composition file, its one base and two adapters."""
    write_expert(tmp_path / "models" / "base", seed=1)
    write_adapter(tmp_path / "adapters" / "sql", ("self_attn.q_proj", "mlp.up_proj"), seed=2)
    write_adapter(tmp_path / "adapters" / "german", ("mlp.down_proj",), seed=3)
    path = tmp_path / "office.toml"
    path.write_text(OFFICE)
    return path


def test_a_file_of_adapters_becomes_one_of_experts(office: Path, tmp_path: Path) -> None:
    unmerged = json.loads(run("check", office, "--json").stdout)["experts"]
    assert {name: expert["base"] for name, expert in unmerged.items()} == {
        "sql": "general",
        "german": "general",
        "general": "",
    }
    report = json.loads(run("merge", office, tmp_path / "out", "--json").stdout)
    assert {name: len(found["kinds"]) for name, found in report["experts"].items()} == {"sql": 2, "german": 1}
    assert report["experts"]["sql"]["folder"] == str(tmp_path / "out" / "sql")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"sql", "german", "composition.toml"}
    base = tmp_path / "models" / "base"
    for name in ("sql", "german"):
        alone = tmp_path / f"{name}-alone"
        assert run("merge", base, tmp_path / "adapters" / name, alone).exit_code == 0
        ours = (tmp_path / "out" / name / "model.safetensors").read_bytes()
        assert ours == (alone / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


def test_what_is_written_is_served_from_anywhere(office: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the router of the file that was written, from another folder, after the first file is gone."""
    printed = run("merge", office, tmp_path / "out")
    assert printed.exit_code == 0, printed.output
    assert "mlp.down_proj" in printed.stdout
    office.unlink()
    monkeypatch.chdir("/")
    checked = json.loads(run("check", tmp_path / "out", "--json").stdout)
    assert list(checked["experts"]) == ["sql", "german", "general"]
    assert len({expert["architecture_key"] for expert in checked["experts"].values()}) == 1
    answer = json.loads(run("run", tmp_path / "out", "--max-tokens", "3", "--json", "which table?").stdout)
    assert answer["expert"] == "sql"
    assert (
        json.loads(run("run", tmp_path / "out", "--max-tokens", "3", "--json", "hello").stdout)["expert"] == "general"
    )


def test_a_folder_with_a_composition_file_is_that_file(office: Path, tmp_path: Path) -> None:
    office.rename(tmp_path / "composition.toml")
    assert run("merge", tmp_path, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "sql" / "model.safetensors").is_file()


def test_adapters_below_a_checkpoint_leave_it_an_expert(office: Path, tmp_path: Path) -> None:
    """Training often puts them there."""
    write_adapter(tmp_path / "models" / "base" / "adapter", ("mlp.up_proj",), seed=4)
    assert run("check", tmp_path / "models" / "base").exit_code == 0
    assert run("check", tmp_path / "models").exit_code == 0


def test_all_other_paths_are_whole(office: Path, tmp_path: Path) -> None:
    """Configs, the router's own model and its file; names of shapes and Hugging Face ids stay what they are."""
    for name in ("shape.json", "models/shape"):
        (tmp_path / name).write_text(json.dumps(CONFIG))
    more = '[[expert]]\nname = "a"\nconfig = "shape.json"\n[[expert]]\nname = "b"\nconfig = "llama-2-7b"\n'
    more += '[[expert]]\nname = "c"\nconfig = "models/shape"\n'
    experts = OFFICE[OFFICE.index("[[expert]]") :] + more
    router = '[router]\nkind = "llm"\nfallback = "a"\ncheckpoint = "models/base"\n'
    office.write_text('name = "office"\n' + router + experts)
    assert run("merge", office, tmp_path / "out").exit_code == 0
    values = tomllib.loads((tmp_path / "out" / "composition.toml").read_text())
    base = str(tmp_path / "models" / "base")
    assert values["router"] == {"kind": "llm", "fallback": "a", "checkpoint": base}
    assert [e.get("checkpoint") for e in values["expert"]] == ["sql", "german", base, None, None, None]
    assert [e["config"] for e in values["expert"][3:]] == [
        *(str(tmp_path / "shape.json"), "llama-2-7b", str(tmp_path / "models" / "shape"))
    ]
    assert values["expert"][0]["description"] == 'English to SQL: "rows"'
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"expert": "sql", "prompt": "how many rows?"}\n')
    office.write_text('name = "office"\n[router]\nkind = "knn"\nfallback = "a"\nexamples = "lines.jsonl"\n' + experts)
    assert run("merge", office, tmp_path / "knn").exit_code == 0
    values = tomllib.loads((tmp_path / "knn" / "composition.toml").read_text())
    assert values["router"]["examples"] == str(lines)
    (tmp_path / "router.npz").write_bytes(b"")  # which is read when it is served
    office.write_text('name = "office"\n[router]\nkind = "lexical"\nfallback = "a"\n' + experts)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.toml").symlink_to(office)
    assert run("merge", tmp_path / "elsewhere" / "link.toml", tmp_path / "lexical").exit_code == 0
    values = tomllib.loads((tmp_path / "lexical" / "composition.toml").read_text())
    assert values["router"]["weights"] == str(tmp_path / "router.npz")


def test_names_that_a_disk_does_not_tell_apart(office: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that does not know capitals, which is played here, one folder has both names."""

    def both(base: Path, adapter: Path, target: Path) -> Merged:
        found = merge_folder(base, adapter, target)
        target.with_name(target.name.upper()).symlink_to(target)
        return found

    monkeypatch.setattr(merge, "merge_folder", both)
    office.write_text(office.read_text().replace('"german"', '"SQL"'))
    refused(run("merge", office, tmp_path / "out"), "'SQL'", "does not tell", "capitals", "rename")
    assert not list(tmp_path.glob("out*"))


def test_mistakes_are_told_before_the_work_and_leave_nothing(
    office: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = office.read_text()
    for wrong, words in (
        (good.replace('"adapters/german"', '"adapters/none"'), ("adapters/none", "there is no adapter")),
        (good.replace('fallback = "general"', 'fallback = "nobody"'), ("router.fallback", "nobody")),
        (good.replace('"models/base"', '"models/none"'), ("'sql'.checkpoint", "models/none")),
        (good.replace("adapter =", "adaptor ="), ("adaptor", "adapter")),
        (
            good.replace('"german"', '"sql.partial"'),
            ("'sql.partial' has the name under which 'sql'", "rename"),
        ),
        (good.replace('"german"', '"composition.toml"'), ("'composition.toml' has the name of the file", "rename")),
        (good.replace('adapter = "adapters/sql"\n', "").replace('adapter = "adapters/german"\n', ""), ("no expert",)),
    ):
        office.write_text(wrong)
        refused(run("merge", office, tmp_path / "out"), *words)
    office.write_text(good)
    (tmp_path / "adapters" / "german" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3}')
    refused(run("merge", office, tmp_path / "out"), "mlp.down_proj", "says 3")
    shutil.rmtree(tmp_path / "adapters" / "german")
    write_adapter(tmp_path / "adapters" / "german", ("mlp.other_proj",), seed=3)
    with monkeypatch.context() as patched:
        patched.setattr(merge, "merge_folder", lambda *_: pytest.fail("an expert was written"))
        refused(run("merge", office, tmp_path / "out"), "mlp.other_proj", "does not have")
    refused(run("merge", tmp_path / "models" / "base", tmp_path / "adapters" / "sql"), "BASE ADAPTER OUT")
    refused(run("merge", office, office.parent), "exists already")
    assert not list(tmp_path.glob("out*"))

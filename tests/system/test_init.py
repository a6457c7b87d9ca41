"""`coterie init`: the file that it writes is the folder, and with its marks off a composition with a router."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.system.commands import refused, run
from tests.system.tiny import write_adapter_of, write_expert, write_reranker

from coterie.composition.composition import Composition, load_composition
from coterie.composition.router import Prompt
from coterie.composition.routing import make_router


def told(found: Composition) -> dict[str, tuple[Path | None, Path | None]]:
    """The experts of a composition, and which folders they are."""
    return {
        one.name: (one.checkpoint and one.checkpoint.resolve(), one.base and one.base.resolve())
        for one in found.experts
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three kinds of experts, a name that is made safe, one behind a link, and one that is broken."""
    root = tmp_path / "my models"
    base = write_expert(root / "base", 0)
    write_expert(root / "My Model (1)", 1)
    write_adapter_of(base, root / "tuned", ("q_proj", "v_proj"), 3)
    write_reranker(root / "vectors", 4)
    elsewhere = write_expert(tmp_path / "elsewhere" / "linked", 5)
    (root / "linked").symlink_to(elsewhere)
    write_expert(root / "broken", 6)
    (root / "broken" / "model.safetensors").write_bytes(b"\x00")
    return root


@pytest.mark.parametrize("target", ["", "beside.toml", "deep/er/file.toml", "my models/base/inside.toml"])
def test_the_file_opens_as_the_folder_does_wherever_it_is(folder: Path, tmp_path: Path, target: str) -> None:
    before = load_composition(folder)
    file = tmp_path / target if target else folder / "composition.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    result = run("init", folder, *([file] if target else []))
    assert result.exit_code == 0, result.output
    assert "5 experts" in result.stdout
    assert "broken is left out" in result.stderr
    expected = told(before)
    del expected["broken"]
    assert expected.keys() == {"base", "My-Model-1", "tuned", "vectors", "linked"}
    found = load_composition(file)
    assert told(found) == expected
    assert (found.name, found.router) == (before.name, None)
    assert "# broken: [" in file.read_text()
    written = re.findall(r'^(?:checkpoint|base) = "(.*)"$', file.read_text(), re.MULTILINE)
    assert len(written) == 6
    assert not any(path.startswith("/") for path in written)
    assert run("check", file).exit_code == 0


def test_the_folder_can_move_with_its_file(folder: Path, tmp_path: Path) -> None:
    assert run("init", folder).exit_code == 0
    moved = folder.rename(tmp_path / "moved")
    assert load_composition(moved).expert("base").checkpoint == moved.resolve() / "base"


def test_a_name_that_begins_as_users_folders_do(tmp_path: Path) -> None:
    place = write_expert(tmp_path / "~tilde", 0)
    assert run("init", tmp_path).exit_code == 0
    assert load_composition(tmp_path).expert("tilde").checkpoint == place


def test_with_its_marks_off_it_has_a_router_and_all_else(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "whole.toml"
    assert run("init", folder, file).exit_code == 0
    file.write_text(re.sub(r"^#(?! )", "", file.read_text(), flags=re.MULTILINE))
    found = load_composition(file)
    assert found.router is not None
    assert (found.router.kind, found.router.fallback) == ("knn", found.names[0])
    assert found.expert("tuned:latest").sampling.temperature == 0.7
    assert {one.expert for one in found.router.examples} == set(found.names) - {"vectors"}
    router = make_router(found)
    assert (
        router.decide(Prompt.from_messages([{"role": "user", "content": "a question for tuned"}]), ()).expert == "tuned"
    )


def test_printed_it_has_whole_paths_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    result = run("init", folder, "-")
    assert result.exit_code == 0, result.output
    assert not (folder / "composition.toml").exists()
    (tmp_path / "any").mkdir()
    (tmp_path / "any" / "c.toml").write_text(result.stdout)
    before = told(load_composition(folder))
    assert told(load_composition(tmp_path / "any" / "c.toml")) == {n: p for n, p in before.items() if n != "broken"}


def test_one_checkpoint_alone(folder: Path) -> None:
    assert run("init", folder / "base").exit_code == 0
    found = load_composition(folder / "base")
    assert (found.name, found.names) == ("base-experts", ("base",))
    assert found.expert("base").checkpoint == folder / "base"


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    mine = folder / "composition.toml"
    mine.write_text("mine")
    for words in ((folder,), (folder, tmp_path / "other.toml"), (folder, "-")):
        refused(run("init", *words), "composition.toml] is there already; take it away first")
    assert mine.read_text() == "mine"
    mine.unlink()
    other = tmp_path / "other.toml"
    other.symlink_to(tmp_path / "nowhere")
    refused(run("init", folder, other), "other.toml] is there already")
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_folder_of_checkpoints_is_told(tmp_path: Path) -> None:
    refused(run("init", tmp_path / "gone"), "gone] is no folder; give a folder")
    refused(run("init", tmp_path), "no expert")
    write_expert(tmp_path / "models" / "one", 0)
    refused(run("init", tmp_path / "models", tmp_path / "gone" / "c.toml"), "there is no folder")

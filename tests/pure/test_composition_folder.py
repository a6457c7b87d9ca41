"""A folder as a composition: what of it is an expert, under which name, and what is left out and why."""

from pathlib import Path

import pytest

from coterie.composition.composition import load_composition
from coterie.core.errors import CheckpointError, CompositionError, NotFoundError


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def cached(hub: Path, model: str, *commits: str, main: str = "") -> Path:
    """A model as huggingface_hub keeps it: files are links to blobs, and a branch is a file with its commit."""
    folder = hub / f"models--{model}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "1").write_text("{}")
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").symlink_to("../../blobs/1")
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(f"{main}\n")
    return folder


def test_what_cannot_be_an_expert_is_left_out_with_the_reason(tmp_path):
    checkpoint(tmp_path / "sql")
    checkpoint(tmp_path / "\u6a21\u578b")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("not a model, and nobody would think so")
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.safetensors").touch()
    for file in (tmp_path / "one.gguf", tmp_path / "ggufs" / "two.gguf", tmp_path / "sql" / "beside-it.gguf"):
        file.write_bytes(b"GGUF")
    found = load_composition(tmp_path)
    assert (found.names, found.is_folder) == (("sql",), True)
    said = {name: str(error) for name, error in found.left_out.items()}
    assert said.keys() == {"\u6a21\u578b", "half", "one.gguf", "two.gguf"}
    assert f"[{tmp_path}/half] has no config.json; download the whole model" in said["half"]
    assert "'\u6a21\u578b' cannot be a name; rename it: use letters" in said["\u6a21\u578b"]
    assert (
        f"is a GGUF file, which is imported first; write an expert folder from it: coterie import {tmp_path}"
        in (said["one.gguf"])
    )
    with pytest.raises(NotFoundError, match=r"the expert two\.gguf is left out: .* is a GGUF file.*; write an expert"):
        found.expert("two.gguf")
    with pytest.raises(NotFoundError, match="there is no expert 'three' among 1"):
        found.expert("three")


def test_a_hugging_face_cache(tmp_path):
    """The main revision of each model, its only one where no branch says which, under the model's own name."""
    cached(tmp_path, "team--sql-8b", "old", "new", main="new")
    cached(tmp_path, "team--tax", "a1")
    cached(tmp_path, "other--tax", "b2", main="b2")
    cached(tmp_path, "team--two", "c1", "c2")
    cached(tmp_path, "team--begun", "d1", main="d2")
    (tmp_path / "datasets--team--rows" / "snapshots" / "e1").mkdir(parents=True)
    found = load_composition(tmp_path)
    places = {expert.name: str(expert.checkpoint.relative_to(tmp_path)) for expert in found.experts}
    assert places == {
        "other--tax": "models--other--tax/snapshots/b2",
        "sql-8b": "models--team--sql-8b/snapshots/new",
        "team--tax": "models--team--tax/snapshots/a1",
    }
    assert found.left_out.keys() == {"models--team--two", "models--team--begun"}
    assert "begun/snapshots/d2] has no config.json; download" in str(found.left_out["models--team--begun"])


def test_folders_of_teams(tmp_path):
    """As who downloads models to team/name has them. A name that two have is said with the team's."""
    for name in ("alone", "sql", "red/tax", "red/sql", "blue/sql", "blue/.git", "blue/deep/er", "alone/inside"):
        checkpoint(tmp_path / name)
    (tmp_path / "blue" / "an expert").mkdir()
    checkpoint(tmp_path / ".cache" / "hidden")
    found = load_composition(tmp_path)
    places = {expert.name: str(expert.checkpoint.relative_to(tmp_path)) for expert in found.experts}
    assert places == {
        "alone": "alone",
        "sql": "sql",
        "tax": "red/tax",
        "red--sql": "red/sql",
        "blue--sql": "blue/sql",
    }
    assert not found.left_out  # what is hidden is nobody's model


def test_a_folder_that_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    checkpoint(tmp_path / "sql")
    closed, listed = checkpoint(tmp_path / "closed"), Path.iterdir

    def iterdir(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = load_composition(tmp_path)
    assert found.names == ("sql",)
    assert str(found.left_out["closed"]) == (
        f"[{closed}] cannot be read: Permission denied; let it be read, or take it out of the folder"
    )


def test_one_model_of_a_cache_has_its_own_name(tmp_path):
    folder = cached(tmp_path, "team--sql-8b", "c0ffee", main="c0ffee")
    for ref in (folder, folder / "snapshots" / "c0ffee"):
        found = load_composition(ref)
        assert (found.name, found.names, found.is_folder) == ("sql-8b", ("sql-8b",), False)
        assert found.experts[0].checkpoint == folder / "snapshots" / "c0ffee"
    assert load_composition(checkpoint(tmp_path / "snapshots" / "mine")).name == "mine"


def test_a_folder_with_an_experts_name_is_called_otherwise(tmp_path):
    """Clients ask for both by the same field."""
    checkpoint(tmp_path / "sql" / "sql")
    checkpoint(tmp_path / "sql" / "tax")
    assert load_composition(tmp_path / "sql").name == "sql-experts"
    checkpoint(tmp_path / "sql" / "sql-experts")
    assert load_composition(tmp_path / "sql").name == "sql-experts-experts"


def test_a_folder_that_cannot_be_a_name_gives_one(tmp_path):
    """What of it a name may have, unless another folder is called so; both forms of an accent give the same."""
    names = ("My Model (1)", "-sql", "B\u00fccher", "tax v2", "tax-v2", "x" * 70, "red team/a b", "blue/a-b", "last.")
    for name in names:
        checkpoint(tmp_path / name)
    found = load_composition(tmp_path)
    places = {expert.name: str(expert.checkpoint.relative_to(tmp_path)) for expert in found.experts}
    assert places == {
        "My-Model-1": "My Model (1)",
        "sql": "-sql",
        "Bucher": "B\u00fccher",
        "tax-v2": "tax-v2",
        "x" * 64: "x" * 70,
        "red-team--a-b": "red team/a b",
        "blue--a-b": "blue/a-b",
        "last.": "last.",
    }
    assert list(found.left_out) == ["tax v2"]
    assert "'tax-v2' names two folders; rename one of them" in str(found.left_out["tax v2"])
    checkpoint(tmp_path / "decomposed" / "Bu\u0308cher")
    assert load_composition(tmp_path / "decomposed").names == ("Bucher",)
    assert load_composition(tmp_path / "My Model (1)").names == ("My-Model-1",)
    assert load_composition(checkpoint(tmp_path / "\u6a21")).names == ("model",)


def test_of_two_folders_with_one_name_the_second_is_left_out(tmp_path):
    cached(tmp_path, "team--sql", "a1")
    for name in ("sql", "team--sql"):
        checkpoint(tmp_path / name)
    found = load_composition(tmp_path)
    assert found.names == ("team--sql", "sql")
    assert "'team--sql' names two folders" in str(found.left_out["team--sql"])


def test_a_model_of_the_cache_by_its_id(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(checkpoint(tmp_path / "here" / "team" / "mine").parents[1])
    folder = cached(tmp_path, "team--sql-8b", "old", "new", main="new")
    found = load_composition("team/sql-8b")
    assert (found.names, found.experts[0].checkpoint) == (("sql-8b",), folder / "snapshots" / "new")
    assert load_composition("team/mine").root == tmp_path / "here" / "team" / "mine"  # a folder goes before
    with pytest.raises(
        NotFoundError, match=r"team/no\] .* no such model in the cache .*; give .*, or download it first"
    ):
        load_composition("team/no")


def test_where_nothing_is_left(tmp_path):
    for name in ("\u4e00", "\u4e8c"):
        checkpoint(tmp_path / name)
    with pytest.raises(CompositionError, match="cannot be a name") as raised:
        load_composition(tmp_path)
    assert "nothing of 2 in it can be served; \u4e00: " in str(raised.value)


@pytest.mark.parametrize("commit", ["../../../outside", "/etc", "", "a\nb", "..", b"\xff\xfe"])
def test_a_branch_that_is_no_commit_leads_nowhere(commit, tmp_path):
    """One model of a cache is left out then, and no folder outside of it is looked into."""
    checkpoint(tmp_path / "outside")
    hub = tmp_path / "hub"
    cached(hub, "team--sound", "a1", main="a1")
    odd = cached(hub, "team--odd", "b1", main="b1")
    (odd / "refs" / "main").write_bytes(commit if isinstance(commit, bytes) else commit.encode())
    found = load_composition(hub)
    assert found.names == ("sound",)
    (error,) = found.left_out.values()
    assert isinstance(error, CheckpointError)
    with pytest.raises(CheckpointError, match=r"is no commit|not UTF-8"):
        load_composition(odd)


def test_links_to_nothing_and_configs_that_are_no_files_are_told(tmp_path):
    """A disk that is not mounted, a link to itself, and what a broken download leaves."""
    checkpoint(tmp_path / "good")
    for name, to in (("gone", "/not/mounted/gone"), ("loop", "loop"), (".hidden", "/not/there")):
        (tmp_path / name).symlink_to(to)
    for name in ("broken", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "config.json").symlink_to("../blobs/none")
    (tmp_path / "folder" / "config.json").mkdir()
    found = load_composition(tmp_path)
    assert str(found.left_out["gone"]) == (
        f"[{tmp_path}/gone] points to /not/mounted/gone, which does not exist; "
        "mend the link, or take it out of the folder"
    )
    assert "points to loop" in str(found.left_out["loop"])
    assert found.left_out.keys() == {"gone", "loop"}
    assert [expert.name for expert in found.experts] == ["broken", "folder", "good"]  # opening says what is wrong

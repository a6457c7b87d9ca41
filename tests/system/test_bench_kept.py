"""Weights that benches of a session share: made once, the same as made anew, and never half."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tests.system.tiny import MEASURED

from coterie.bench import experts, kept, random_file
from coterie.bench.experts import kept_experts, packed_expert, random_experts
from coterie.bench.repeating import repeating_expert
from coterie.bench.shapes import with_context
from coterie.core.errors import CapacityError
from coterie.models.model import Model

LONGER = with_context(MEASURED, 2049)


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    monkeypatch.setenv(kept.FOLDER, str(folder))
    return folder


def weights(model: Model) -> bytes:
    return (model.checkpoint.path / "model.safetensors").read_bytes()


def never(*_: object, **__: object) -> None:
    raise AssertionError("it was to be found")


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kept.FOLDER, raising=False)
    with random_experts(MEASURED, 1) as (model,), packed_expert(model, "int8") as packed:
        files = [one.checkpoint.path / "model.safetensors" for one in (model, packed)]
        assert not any(file.is_symlink() for file in files)
    assert not any(file.exists() for file in files)
    assert kept_experts(MEASURED) == 0


def test_models_that_differ_in_their_config_alone_share_weights(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with random_experts(MEASURED, 2) as made:
        written = [weights(model) for model in made]
    assert kept_experts(LONGER) == 2
    with monkeypatch.context() as patched:
        patched.setattr(experts, "write_tensors", never)
        with random_experts(LONGER, 2) as found:
            assert [weights(model) for model in found] == written
            assert [model.name for model in found] == ["random-0", "random-1"]
            assert {model.max_context for model in found} == {2049}
        with pytest.raises(AssertionError), random_experts(LONGER, 3):
            pass
    monkeypatch.delenv(kept.FOLDER)
    with random_experts(MEASURED, 2) as anew:
        assert [weights(model) for model in anew] == written
    assert len(list(keep.iterdir())) == 2


@pytest.mark.parametrize("how", ["int8", "int6", "int4"])
def test_packed_weights_are_shared_too(keep: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    with random_experts(MEASURED, 1) as (model,), packed_expert(model, how) as packed:
        written, config = weights(packed), packed.checkpoint.config
    with monkeypatch.context() as patched:
        patched.setattr(experts, "quantize_folder", never)
        with random_experts(LONGER, 1) as (model,), packed_expert(model, how) as packed:
            assert weights(packed) == written
            assert packed.max_context == 2049
            assert packed.name == how
            assert {
                **packed.checkpoint.config,
                "max_position_embeddings": MEASURED["max_position_embeddings"],
            } == config
    monkeypatch.delenv(kept.FOLDER)
    with random_experts(MEASURED, 1) as (model,), packed_expert(model, how) as packed:
        assert weights(packed) == written
    assert len(list(keep.iterdir())) == 2


def test_what_a_bench_changes_is_its_own(keep: Path) -> None:
    """Files of which a bench rewrites a part are not those that others find."""
    with random_experts(MEASURED, 1) as (model,):
        before = weights(model)
    with repeating_expert(MEASURED) as (model, _), packed_expert(model, "int8") as packed:
        assert not (packed.checkpoint.path / "model.safetensors").is_symlink()
    with random_experts(MEASURED, 1) as (model,):
        assert weights(model) == before
    assert len(list(keep.iterdir())) == 1


def test_other_sources_make_other_files(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with random_experts(MEASURED, 1):
        pass
    monkeypatch.setattr(kept, "_source_digest", lambda: "of another version")
    assert kept_experts(MEASURED) == 0
    with random_experts(MEASURED, 1):
        pass
    assert len(list(keep.iterdir())) == 2


def test_what_was_begun_is_never_found(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = random_file.write_tensors

    def stopped(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(experts, "write_tensors", stopped)
    with pytest.raises(KeyboardInterrupt), random_experts(MEASURED, 1):
        pass
    assert list(keep.iterdir()) == []

    def killed(path: Path, **__: object) -> None:
        write(path, **__)
        os.link(path, keep / ("0" * 64 + kept.PARTIAL))  # somebody else's, who was killed

    monkeypatch.setattr(experts, "write_tensors", killed)
    with random_experts(MEASURED, 1) as (model,):
        whole = weights(model)
    (keep / "a folder").mkdir()
    kept.clean(keep)
    assert [file.read_bytes() for file in keep.iterdir()] == [whole]


def test_two_processes_that_make_the_same_do_not_write_to_one_file(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another begins and ends while the first has written half, which goes on, and is stopped."""
    write, mine, found = random_file.write_tensors, os.getpid(), []

    def meanwhile(path: Path, *_: object, **__: object) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(b"half of it")
            with monkeypatch.context() as other:
                other.setattr(kept.os, "getpid", lambda: mine + 1)
                other.setattr(experts, "write_tensors", write)
                with random_experts(MEASURED, 1) as (model,):
                    found.append(weights(model))
            file.write(b", and more")
        raise KeyboardInterrupt

    monkeypatch.setattr(experts, "write_tensors", meanwhile)
    with pytest.raises(KeyboardInterrupt), random_experts(MEASURED, 1):
        pass
    monkeypatch.setattr(experts, "write_tensors", never)
    with random_experts(MEASURED, 1) as (model,):
        assert found == [weights(model)]
    assert len(list(keep.iterdir())) == 1


def test_room_is_needed_only_for_what_is_not_kept(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with random_experts(MEASURED, 2):
        pass
    usage = shutil.disk_usage(tempfile.gettempdir())
    monkeypatch.setattr(experts.shutil, "disk_usage", lambda path: usage._replace(free=0))
    with random_experts(MEASURED, 2):
        pass
    heard: list[str] = []
    with experts.experts_in_turn((MEASURED,), 2, heard.append) as models:
        assert len(models) == 2
    assert heard == ["writing 0 random experts, 0 B"]
    with pytest.raises(CapacityError, match="1 random expert "), random_experts(MEASURED, 3):
        pass
    with pytest.raises(CapacityError), repeating_expert(MEASURED):
        pass

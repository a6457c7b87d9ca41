"""Random experts of benches, several written at once: each as it is by itself, and none where there is no room."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.system.tiny import CONFIG

from coterie.bench import experts, random_file
from coterie.core.errors import CapacityError
from coterie.models.config import ModelConfig
from coterie.models.registry import weight_shapes


def test_experts_that_are_written_at_once_have_the_bytes_of_each_alone(tmp_path: Path) -> None:
    shapes = weight_shapes(ModelConfig.from_hf(CONFIG, "--shape"))
    with experts.random_experts(CONFIG, 5) as made:
        written = [Path(model.layout.ranges[0].source.path).read_bytes() for model in made]
    for seed, found in enumerate(written):
        experts.write_expert(tmp_path / str(seed), CONFIG, shapes, seed)
        assert (tmp_path / str(seed) / "model.safetensors").read_bytes() == found
    assert len(set(written)) == 5


@pytest.mark.parametrize("piece", [7, 1000, 1 << 22])
def test_a_file_has_the_same_bytes_by_however_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """In pieces that divide no tensor, and where the system writes less than it was given."""
    monkeypatch.setattr(random_file, "PIECE_ELEMENTS", piece)
    shapes = {"odd": (3, 5), "norm": (13,), "large": (61, 37), "one": (1,)}
    for threads in (1, 3):
        random_file.write_tensors(tmp_path / str(threads), shapes, 7, threads)
    pwrite = os.pwrite
    monkeypatch.setattr(random_file.os, "pwrite", lambda file, part, at: pwrite(file, part[:5], at))
    random_file.write_tensors(tmp_path / "in bits", shapes, 7, 2)
    one, *others = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    assert others == [one, one]
    assert len(one) == 8 + int.from_bytes(one[:8], "little") + random_file.weight_bytes(shapes)
    random_file.write_tensors(tmp_path / "other", shapes, 8)
    assert (tmp_path / "other").read_bytes() != one


def test_a_disk_that_is_full_by_then_is_one_sentence_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = experts.write_tensors

    def full(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, threads: int) -> None:
        if seed == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, shapes, seed, threads)

    monkeypatch.setattr(experts, "write_tensors", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(CapacityError), experts.random_experts(CONFIG, 3):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_interrupts_waits_for_none_that_was_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    told, shutdown = threading.Event(), experts.ThreadPoolExecutor.shutdown

    def write(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, threads: int) -> None:
        begun.append(seed)
        if seed == 0:
            raise KeyboardInterrupt
        assert told.wait(60)

    def end(pool: experts.ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        told.set()
        shutdown(pool, wait=wait)

    monkeypatch.setattr(experts.ThreadPoolExecutor, "shutdown", end)
    monkeypatch.setattr(experts, "allowed_cpus", lambda: (1, "one"))
    monkeypatch.setattr(experts, "write_tensors", write)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), experts.random_experts(CONFIG, 20):
        pass
    assert len(begun) <= 2
    assert list(tmp_path.iterdir()) == []

"""Random experts of benches, several written at once: each as it is by itself, and none where there is no room."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
from tests.system.tiny import CONFIG

from coterie.bench import experts
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


def test_a_disk_that_is_full_by_then_is_one_sentence_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = experts.write_expert

    def full(folder: Path, config: object, shapes: object, seed: int) -> None:
        if seed == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, CONFIG, weight_shapes(ModelConfig.from_hf(CONFIG, "--shape")), seed)

    monkeypatch.setattr(experts, "write_expert", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(CapacityError), experts.random_experts(CONFIG, 3):
        pass
    assert list(tmp_path.iterdir()) == []

"""The random experts that benches measure: room for them, their weights, and that they go."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tests.system.test_bench import refused
from tests.system.tiny import CONFIG

from coterie.bench import experts as bench_experts
from coterie.bench import random_file, shapes
from coterie.core.errors import CapacityError
from coterie.graph.compile import compile_graph
from coterie.models.model import load_weights_f32

pytestmark = pytest.mark.usefixtures("temporary")


def test_no_room_is_a_sentence_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tempfile.gettempdir())
    monkeypatch.setattr(bench_experts.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    sentence = refused("switch", "--shape", "135m", "--experts", 2)
    for word in ("temporary folder", "2 random experts", "1.00 MiB", "TMPDIR"):
        assert word in sentence


def test_a_disk_that_fills_up_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(random_file, "_write_piece", full)
    with pytest.raises(CapacityError, match="TMPDIR"), bench_experts.random_experts(CONFIG, 1):
        pass
    assert not list(temporary.iterdir())


def test_experts_go_when_the_user_interrupts(temporary: Path) -> None:
    def interrupted() -> None:
        with bench_experts.random_experts(CONFIG, 2) as models:
            assert len(list(temporary.glob("*/*/model.safetensors"))) == len(models) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(temporary.iterdir())


def test_random_weights_are_of_an_ordinary_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_file, "PIECE_ELEMENTS", 1000)  # smaller than a tensor, and no divisor of one
    with bench_experts.random_experts(CONFIG, 2) as (first, second):
        weights, others = load_weights_f32(first), load_weights_f32(second)
        assert first.key == second.key
        assert compile_graph(first.graph, "cache").vocab_size == CONFIG["vocab_size"]
        for name, values in weights.items():
            assert np.isfinite(values).all()
            assert not np.array_equal(values, others[name])
            if "norm" in name:
                assert ((values >= 1) & (values < 2)).all()
            else:
                scale = np.sqrt(np.mean(values**2)) * values.shape[-1] ** 0.5
                assert 0.5 < scale < 2
                assert abs(np.mean(values > 0) - 0.5) < 0.1


def test_the_shipped_shapes_open() -> None:
    sizes = {name: sum(np.prod(s) for s in bench_shapes(name).values()) for name in shapes.SHAPES}
    assert 134e6 < sizes["135m"] < 135e6
    assert sizes["demo"] < 1e6
    assert 468e6 < sizes["moe"] < 470e6
    assert 6.73e9 < sizes["7b"] < 6.75e9


def bench_shapes(name: str) -> dict[str, tuple[int, ...]]:
    config = bench_experts.ModelConfig.from_hf(shapes.shape_config(name), name)
    return bench_experts.weight_shapes(config)

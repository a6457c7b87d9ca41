"""`bench fusion --device cuda` on a GPU that is none: which ways it runs, and runs of how many steps.

Kernels are the CPU's here. Knows nothing about what a way would take on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.system.test_cuda import lazy, run
from tests.system.test_cuda_bench import bench, shape

from coterie.bench.decode import STEPS
from coterie.devices.cuda.device import CudaDevice
from coterie.devices.cuda.gpu import Gpu

__all__ = ["lazy", "shape"]  # fixtures
ALL_WAYS = ("unfused/host", "fused/host", "fused/device", "fused/persistent")


@pytest.mark.parametrize(("asked", "ways"), [((), ALL_WAYS[:3]), (ALL_WAYS[:1:-1], ALL_WAYS[2:]), (ALL_WAYS, ALL_WAYS)])
def test_the_fusion_grid_has_the_ways_that_are_asked_for(
    shape: Path, asked: tuple[str, ...], ways: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default not the one whose programs wait for each other."""
    made, make = [], Gpu.make
    monkeypatch.setattr(Gpu, "make", lambda self, how="device": made.append(how) or make(self, how))
    words = [word for way in asked for word in ("--way", way)]
    grid = {
        (cell["phase"], cell["way"]): cell for cell in bench("fusion", "--shape", shape, "--prompt", 5, *words)["grid"]
    }
    assert list(grid) == [(phase, way) for phase in ("prefill", "decode") for way in ways]
    assert made == [*dict.fromkeys(way.split("/")[1] for way in ways)]
    assert grid["decode", ways[0]]["speedup"] == 1
    if "unfused/host" in ways:
        assert grid["decode", "unfused/host"]["regions"] > grid["decode", "fused/device"]["regions"]


def test_decode_of_the_fusion_grid_is_of_runs_of_several_steps(shape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What walks a run in one launch has nothing to show in a run of one step."""
    steps, run_steps = [], CudaDevice.run
    monkeypatch.setattr(CudaDevice, "run", lambda *args, **how: steps.append(how["steps"]) or run_steps(*args, **how))
    got = bench("fusion", "--shape", shape, "--prompt", 5, "--way", "fused/persistent")
    assert [*dict.fromkeys(steps)] == [1, STEPS]
    assert got["workload"]["decode_steps"] == STEPS
    assert not any("launched one by one" in note for note in got["notes"])


def test_a_way_that_there_is_not_is_refused_with_those_that_there_are(shape: Path) -> None:
    code, text = run("bench", "fusion", "--shape", str(shape), "--device", "cuda", "--way", "fused/twice")
    assert code == 2
    assert "'fused/twice' is no way to run a step; use one of unfused/host, fused/host" in text
    code, text = run("bench", "fusion", "--shape", str(shape), "--way", "fused/host")
    assert code == 2
    assert "leave it out, or add --device cuda" in text

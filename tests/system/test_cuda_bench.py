"""Benches on a GPU that is none: what they are held against, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.system.test_cuda import Gpu, lazy, run
from tests.system.tiny import CONFIG
from typer.testing import CliRunner

from coterie.bench.coe import POLICIES
from coterie.cli.main import app
from coterie.core.trace import read_trace
from coterie.devices.cuda import gpu
from coterie.devices.cuda import limits as cuda_limits

__all__ = ["lazy"]  # a fixture

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")


def bench(*words: object, rounds: int = 2) -> dict:
    result = CliRunner().invoke(
        app, ["bench", *map(str, words), "--device", "cuda", "--json", "--rounds", str(rounds), "--seconds", "0"]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def shape(tmp_path: Path, lazy: Gpu, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, and limits of few bytes: the lazy GPU is this machine's processor."""
    monkeypatch.setattr(gpu, "LIMIT_BYTES", 1 << 16)
    monkeypatch.setattr(cuda_limits.MachineLimits.__init__, "__defaults__", (1 << 16, 32))
    monkeypatch.setattr(gpu.Gpu.limits, "__defaults__", (1 << 16,))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def test_decode_and_prefill_are_held_against_the_gpus_limits(shape: Path) -> None:
    got = bench("decode", "--shape", shape, "--context", 7, "--batch", 2)
    assert got["workload"]["gpu"] == "lazy (no CUDA)"
    assert got["mbu"] > 0
    assert got["read_limit"]["name"].startswith("read loop")
    assert got["batch"]["size"] == 2
    got = bench("prefill", "--shape", shape, "--prompt", 9, rounds=1)
    assert got["share_of_peak"] == pytest.approx(got["flops_per_s"] / got["product_flops_per_s"])
    assert got["tokens_per_s"] == pytest.approx(9 / got["seconds"])


def test_a_switch_is_held_against_a_copy_and_the_ideal(shape: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    got = bench("switch", "--shape", shape, "--prompt", 5, "--experts", 2, "--trace", trace)
    assert got["cold_ttft_s"] > 0
    assert got["copy_bytes_per_s"] > 0
    assert got["rounds"] == 2
    assert "dram->hbm" in read_trace(trace).lanes


def test_many_experts_are_served_from_the_pool(shape: Path) -> None:
    words = ("coe", "--shape", shape, "--experts", 3, "--requests", 9, "--mix", "uniform", "--in-flight", 3)
    result = CliRunner().invoke(
        app,
        ["bench", *map(str, words), "--device", "cuda", "--near", "100KiB", "--prompt", "4", "--tokens", "3", "--json"],
    )
    assert result.exit_code == 0, result.output
    got = json.loads(result.stdout.splitlines()[-1])
    assert {run["policy"] for run in got["runs"]} == set(POLICIES)
    assert all(run["moved_bytes"] > 0 for run in got["runs"])
    assert any("from pinned memory" in note for note in got["notes"])
    assert got["workload"]["gpu"] == "lazy (no CUDA)"
    assert not any("chosen" in note and "experts of" in note for note in got["notes"])  # 3 were asked for


def test_what_a_gpu_is_not_measured_with_is_refused(shape: Path) -> None:
    code, text = run("bench", "prefill", "--activations", "int8", "--shape", str(shape), "--device", "cuda")
    assert code == 2
    assert "round no activations to int8" in text
    code, text = run("bench", "decode", "--activations", "bf16", "--shape", str(shape), "--device", "cuda")
    assert code == 2
    assert "round to bf16 in steps of more than four tokens" in text
    code, text = run("bench", "switch", "--device", "synthetic:toy")
    assert code == 2
    assert "'synthetic:toy' is not measured here; use cpu or cuda" in text

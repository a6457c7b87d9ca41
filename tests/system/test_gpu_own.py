"""A GPU as a machine file, and its benches held against it: on a GPU that is none, and on results made for the test.

Nothing here says anything about a GPU: the lazy one is this machine's processor, and the made results are made up.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.system.test_cuda import bench, lazy, run, shape
from tests.system.tiny import CONFIG

from coterie.bench import gpu_calibrate
from coterie.bench.report import Effort
from coterie.bench.shapes import shape_config
from coterie.cli import info
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.cuda_sticks import Sticks
from coterie.devices.gpu import Gpu
from coterie.devices.modelled_price import step_time
from coterie.graph.compile import compile_graph
from coterie.models.model import synthetic_model
from coterie.plan.validate.gpu_own import MACHINE, first_tokens_s, gpu_rows
from coterie.plan.validate.rows import CALIBRATION, VALIDATION
from coterie.spec.load import load_machine, machine_names, parse_machine

__all__ = ["lazy", "shape"]  # fixtures
MADE = Path(__file__).parent / "data" / "made-up-gpu"
MADE_GPU = "made up for a test, no GPU"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that a tiny model has, and few rounds."""
    monkeypatch.setattr(gpu_calibrate, "PROMPT_TOKENS", 12)
    monkeypatch.setattr(info, "Effort", lambda: Effort(2, 0.0))


def test_calibrating_a_gpu_writes_a_machine_of_measured_numbers(shape: Path, quick: None, tmp_path: Path) -> None:
    file = tmp_path / MACHINE
    code, text = run("info", "--calibrate", "--device", "cuda", "--out", str(file), "--shape", str(shape))
    assert code == 0, text
    spec = load_machine(str(file))
    assert [tier.name for tier in spec.tiers] == ["hbm", "dram", "disk"]
    assert (spec.run_tier, spec.home_tier, spec.rule_set) == ("hbm", "disk", "cache")
    for rate in (*(tier.bytes_per_s for tier in spec.tiers), *(link.bytes_per_s for link in spec.links)):
        assert 1e3 < rate < 1e14
    assert 0 < spec.achieved_flops_per_s <= spec.flops_per_s
    assert 0 < spec.launch_device_s < 1
    assert 0 < spec.launch_host_s < 1
    assert spec.link("dram", "hbm").latency_s > 0
    assert spec.tier("hbm").capacity_bytes == int(2**30 * 0.92)
    sources = (spec.flops_source, spec.launch_source, spec.tier("hbm").source, spec.link("dram", "hbm").source)
    for source in sources:
        assert "measured: lazy (no CUDA), config shape, coterie " in source
    assert "GPU: lazy (no CUDA)" in spec.notes
    assert "calibrated on the config shape" in spec.notes
    assert MACHINE.removesuffix(".toml") not in machine_names()
    code, text = run("run", "demo", "What is 3 + 4?", "--device", f"synthetic:{file}", "--max-tokens", "4")
    assert code == 0, text


def test_a_calibrations_fields_are_those_of_its_file(shape: Path, quick: None) -> None:
    found = gpu_calibrate.calibrate_gpu("mine", Gpu(), Effort(2, 0.0), str(shape))
    spec, plain = parse_machine(found.to_toml(), "mine.toml"), gpu_calibrate.to_plain(found)
    assert spec.tier("hbm").bytes_per_s == pytest.approx(plain["read_bytes_per_s"], rel=1e-5)
    assert spec.flops_per_s == pytest.approx(plain["product_flops_per_s"], rel=1e-5)
    assert spec.flops_share == pytest.approx(plain["flops_share"], rel=1e-3)
    assert spec.link("dram", "hbm").bytes_per_s == pytest.approx(plain["copy_bytes_per_s"], rel=1e-5)
    assert spec.launch_host_s == pytest.approx(plain["launch_host_s"], rel=1e-5)
    assert "quote'" in gpu_calibrate._number(1.0, "us", 'a "quote"')


def test_a_share_above_its_stick_is_taken_as_1_and_a_note_says_so(
    shape: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where launches that hide behind other kernels are taken off a prompt's time."""
    slow, fast = 1e3, 1e-9
    for launch_s, multiply_s, notes in ((0.0, slow, 1), (0.0, fast, 0)):
        monkeypatch.setattr(gpu_calibrate, "_launch_s", lambda *args, launch_s=launch_s: launch_s)
        monkeypatch.setattr(Sticks, "multiply_seconds", lambda self, multiply_s=multiply_s: multiply_s)
        found = gpu_calibrate.calibrate_gpu("mine", Gpu(), Effort(2, 0.0), str(shape))
        assert (found.flops_share == 1) == bool(notes)
        said = [note for note in parse_machine(found.to_toml(), "mine.toml").notes if "prefill: " in note]
        assert len(said) == notes
        assert all(note.endswith("of the product's rate without launches, taken as 1") for note in said)


def test_calibrating_says_what_it_cannot_do(lazy: object, tmp_path: Path) -> None:
    for words, said in (
        (("--calibrate", "--device", "gpu"), "'gpu' is not measured here"),
        (("--device", "cuda"), "says what to calibrate"),
        (("--calibrate", "--device", "cuda", "--out", str(tmp_path / "a b.toml")), "cannot name a machine"),
    ):
        code, text = run("info", *words)
        assert code == 2
        assert said in text


def test_a_gpus_own_benches_are_held_against_its_own_machine(shape: Path, quick: None, tmp_path: Path) -> None:
    """All of it as a session on a GPU does it: calibrate, bench, validate."""
    folder = tmp_path / "results"
    folder.mkdir()
    words = ("info", "--calibrate", "--device", "cuda", "--out", str(folder / MACHINE), "--shape", str(shape))
    assert run(*words)[0] == 0
    for name, more in (
        ("decode", ("--context", 7, "--batch", 2)),
        ("prefill", ("--prompt", 9)),
        ("switch", ("--prompt", 5, "--experts", 2)),
        ("fusion", ("--prompt", 5)),
    ):
        (folder / f"{name}.json").write_text(json.dumps(bench(name, "--shape", shape, *more)))
    code, text = run("validate", "--results", str(folder), "--json")
    assert code == 0, text
    got = json.loads(text)
    rows = {row["row"].split(" (")[0]: row for row in got["rows"] if row["metric"] == "this GPU"}
    shown = str(shape)
    assert set(rows) == {
        f"{shown} bf16, batch 1", f"{shown} bf16, batch 2", f"{shown} bf16, 9 tokens",
        f"cold {shown}, 5 tokens", f"warm {shown}, 5 tokens",
    }  # fmt: skip
    assert rows[f"{shown} bf16, batch 1"]["split"] == rows[f"{shown} bf16, 9 tokens"]["split"] == CALIBRATION
    assert rows[f"cold {shown}, 5 tokens"]["split"] == VALIDATION
    assert all(row["modelled_s"] > 0 and row["error"] > -1 for row in rows.values())
    assert any("this GPU: against machine.toml" in caveat for caveat in got["caveats"])
    assert any("this CPU: no results were given" in caveat for caveat in got["caveats"])


def test_errors_are_those_of_the_model_on_made_up_results() -> None:
    """The folder's numbers were made up so that every error is known."""
    code, text = run("validate", "--results", str(MADE), "--json")
    assert code == 0, text
    rows = {row["row"].split(" (")[0]: row for row in json.loads(text)["rows"] if row["metric"] == "this GPU"}
    spec = load_machine(str(MADE / MACHINE))
    model = synthetic_model(shape_config("demo"), "demo")
    program = compile_graph(model.graph, "cache")
    seconds = {
        "demo bf16, batch 1": step_time(spec, program, Sizes.decode(1, 32)).seconds,
        "demo bf16, batch 8": step_time(spec, program, Sizes.decode(8, 32)).seconds,
        "demo bf16, 64 tokens": step_time(spec, program, Sizes.prefill(1, 64)).seconds,
        **{f"{kind} demo, 64 tokens": s for kind, s in first_tokens_s(spec, model, 64).items()},
    }
    assert {name: row["modelled_s"] for name, row in rows.items()} == pytest.approx(seconds)
    assert rows["demo bf16, batch 1"]["error"] == pytest.approx(seconds["demo bf16, batch 1"] / 1e-3 - 1)


def test_a_cold_first_token_is_the_copy_and_a_warm_one_is_not() -> None:
    text = (MADE / MACHINE).read_text()
    spec = parse_machine(text, MACHINE)
    slow = parse_machine(text.replace('value = 10, unit = "GB/s"', 'value = 0.01, unit = "GB/s"'), MACHINE)
    model = synthetic_model({**CONFIG, "hidden_size": 64}, "tiny")
    fast_s, slow_s = first_tokens_s(spec, model, 20), first_tokens_s(slow, model, 20)
    assert fast_s["warm"] == pytest.approx(slow_s["warm"])
    assert fast_s["warm"] < fast_s["cold"] < slow_s["cold"]
    assert slow_s["cold"] > model.layout.size_bytes / 0.01e9


def test_results_without_their_machine_or_of_another_gpu_are_refused(tmp_path: Path) -> None:
    for file in MADE.glob("*.json"):
        shutil.copy(file, tmp_path)
    code, text = run("validate", "--results", str(tmp_path))
    assert code == 2
    assert "but no machine.toml; make it with coterie info --calibrate --device cuda --out" in text
    machine = (MADE / MACHINE).read_text()
    (tmp_path / MACHINE).write_text(machine.replace(f"GPU: {MADE_GPU}", "GPU: another"))
    code, text = run("validate", "--results", str(tmp_path))
    assert code == 2
    assert "keep the results of each GPU in a folder of its own" in text
    (tmp_path / MACHINE).write_text(machine)
    raw = json.loads((tmp_path / "decode.json").read_text())
    del raw["seconds_per_token"]
    (tmp_path / "decode.json").write_text(json.dumps(raw))
    code, text = run("validate", "--results", str(tmp_path))
    assert code == 2
    assert "has no 'seconds_per_token' in decode.json" in text
    with pytest.raises(UsageError, match="decode, prefill, switch"):
        gpu_rows({name: {} for name in ("decode", "prefill", "switch")}, tmp_path / "none", lambda name: {})

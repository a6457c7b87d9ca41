"""A GPU as a machine file, and its benches held against it: on a GPU that is none, and on results made for the test.

Nothing here says anything about a GPU: the lazy one is this machine's processor, and the made results are made up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.system.test_cuda import lazy, run
from tests.system.test_cuda_bench import bench, shape
from tests.system.tiny import CONFIG

from coterie.bench import gpu_calibrate
from coterie.bench.calibrate import TINY, number
from coterie.bench.report import Effort
from coterie.bench.shapes import shape_config
from coterie.bench.step import Step
from coterie.cli import info
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.cuda.gpu import Gpu
from coterie.devices.cuda.limits import MachineLimits
from coterie.devices.modelled.price import step_time
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
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
    spec, plain = parse_machine(found.to_toml(), "mine.toml"), asdict(found)
    assert spec.tier("hbm").bytes_per_s == pytest.approx(plain["read_bytes_per_s"], rel=1e-5)
    assert spec.flops_per_s == pytest.approx(plain["product_flops_per_s"], rel=1e-5)
    assert spec.flops_share == pytest.approx(plain["flops_share"], rel=1e-3)
    assert spec.link("dram", "hbm").bytes_per_s == pytest.approx(plain["copy_bytes_per_s"], rel=1e-5)
    assert spec.launch_host_s == pytest.approx(plain["launch_host_s"], rel=1e-5)
    assert "quote'" in number(1.0, "us", 'a "quote"')


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Step], float]) -> None:
    """Runs take as long as `seconds` says, a step."""
    monkeypatch.setattr(Step, "seconds", seconds)


def test_a_calibrated_machine_takes_as_long_as_what_it_was_measured_by(
    shape: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On steps that keep to the model: a start a run, launches, then bytes or flops; and a start a prompt."""
    start_s, launch_s, prompt_s, bytes_per_s, flops_per_s = 3e-3, {"host": 5e-6, "device": 1e-6}, 2e-3, 1e9, 1e9

    def seconds(step: Step) -> float:
        sizes = step.binding.rows.sizes
        regions = len(step.exe.program.regions)
        launches_s = regions * launch_s["device" if step.device._runs._captures else "host"]
        if step.exe.program.vocab_size == shape_config(TINY)["vocab_size"]:
            return start_s / step.steps + launches_s  # the tiny model, whose work takes no time
        if sizes.T > sizes.B:
            return start_s + launches_s + prompt_s + step.cost().flops / flops_per_s
        return start_s / step.steps + launches_s + step.cost().total_bytes / bytes_per_s

    timed(monkeypatch, seconds)
    monkeypatch.setattr(MachineLimits, "multiply_seconds", lambda self: self.product_flops / (2 * flops_per_s))
    monkeypatch.setattr(gpu_calibrate, "read_loops", lambda *args: {"of the host": lambda: 1.0})
    monkeypatch.setattr(MachineLimits, "read_loops", lambda self: {"loop": lambda: self.size_bytes / (2 * bytes_per_s)})
    found = gpu_calibrate.calibrate_gpu("mine", Gpu(), Effort(1, 0.0), str(shape))
    spec = parse_machine(found.to_toml(), "mine.toml")
    assert spec.launch_host_s == pytest.approx(5e-6)
    assert spec.launch_device_s == pytest.approx(1e-6)
    assert spec.run_start_s == pytest.approx(start_s - 5e-6)
    assert (spec.flops_share, spec.tier("hbm").share) == (pytest.approx(0.5), pytest.approx(0.5, rel=1e-3))
    assert spec.prompt_start_s == pytest.approx(prompt_s, rel=0.1), "regions that bytes bound are in the model alone"
    program = compile_graph(synthetic_model(shape_config(str(shape)), "mine").graph, "cache")
    for tokens in (2, 12):
        modelled_s = step_time(spec, program, Sizes.prefill(1, tokens)).seconds
        flops = program_cost(program, Sizes.prefill(1, tokens)).flops
        true_s = start_s + len(program.regions) * 1e-6 + prompt_s + flops / flops_per_s
        assert modelled_s == pytest.approx(true_s, rel=0.05)


@pytest.mark.parametrize(("one_s", "launch_s"), [(3.0, (8 * 1.0 - 3.0) / 7), (9.0, 1.0), (8.0, 1.0)])
def test_a_launch_that_is_lost_in_noise_is_a_step_of_the_longer_run(
    monkeypatch: pytest.MonkeyPatch, lazy: object, one_s: float, launch_s: float
) -> None:
    """Where eight steps took no longer than one, no step can be told from a start."""
    timed(monkeypatch, lambda step: one_s if step.steps == 1 else 1.0)
    program = compile_graph(synthetic_model(shape_config(TINY), TINY).graph, "cache")
    found = gpu_calibrate._launch_s(Gpu(), "device", Effort(1, 0.0))
    assert found * len(program.regions) == pytest.approx(launch_s)


def test_a_prompt_that_is_lost_in_noise_gives_a_share_by_itself(
    shape: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, lambda step: 1e-3)
    found = gpu_calibrate.calibrate_gpu("mine", Gpu(), Effort(1, 0.0), str(shape))
    assert 0 < found.flops_share <= 1
    assert found.run_start_s == found.prompt_start_s == 0


def test_a_share_above_its_limit_is_taken_as_1_and_a_note_says_so(
    shape: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where launches that hide behind other kernels are taken off a prompt's time."""
    timed(monkeypatch, lambda step: 1e-3 * (1 + step.binding.rows.sizes.T))
    slow, fast = 1e3, 1e-9
    for launch_s, multiply_s, notes in ((0.0, slow, 1), (0.0, fast, 0)):
        monkeypatch.setattr(gpu_calibrate, "_launch_s", lambda *args, launch_s=launch_s: launch_s)
        monkeypatch.setattr(MachineLimits, "multiply_seconds", lambda self, multiply_s=multiply_s: multiply_s)
        found = gpu_calibrate.calibrate_gpu("mine", Gpu(), Effort(2, 0.0), str(shape))
        assert (found.flops_share == 1) == bool(notes)
        said = [note for note in parse_machine(found.to_toml(), "mine.toml").notes if "prefill: " in note]
        assert len(said) == notes
        assert all(note.endswith("of the product's rate without launches, taken as 1") for note in said)


def test_calibrating_says_what_it_cannot_do(lazy: object, tmp_path: Path) -> None:
    for words, said in (
        (("--calibrate", "--device", "gpu"), "'gpu' is not measured here"),
        (("--device", "cuda"), "says what to calibrate"),
        (("--threads", "2"), "says with how many to calibrate"),
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


def test_a_run_of_several_steps_is_priced_with_one_start(tmp_path: Path) -> None:
    """Eight steps a call where results do not say; a run's start is in each step by an eighth."""
    text = (MADE / MACHINE).read_text()
    started = text.replace(
        "\n\n[[tier]]", '\nrun_start = { value = 16, unit = "ms", source = "made up" }\n\n[[tier]]', 1
    )
    raw = json.loads((MADE / "decode.json").read_text())
    seconds = {}
    for steps in (1, 4, 8, None):
        for name, machine in (("plain", text), ("started", started)):
            (tmp_path / MACHINE).write_text(machine)
            said = {} if steps is None else {"steps": steps}
            load = {key: value for key, value in raw["workload"].items() if key != "steps"} | said
            rows, _ = gpu_rows({"decode": raw | {"workload": load}}, tmp_path, shape_config)
            seconds[steps, name] = rows[0].modelled_s
        assert seconds[steps, "started"] - seconds[steps, "plain"] == pytest.approx(16e-3 / (steps or 8))
    assert seconds[None, "plain"] == seconds[8, "plain"] < seconds[1, "plain"], "one launch by the host, once"


def test_a_cold_prompt_is_launched_kernel_by_kernel_and_a_warm_one_is_not() -> None:
    text = (MADE / MACHINE).read_text()
    fast = text.replace('value = 10, unit = "GB/s"', 'value = 49, unit = "GB/s"')
    model = synthetic_model({**CONFIG, "hidden_size": 64}, "tiny")
    regions = len(compile_graph(model.graph, "cache").regions)
    assert 'launch_host = { value = 8, unit = "us"' in fast
    slow = parse_machine(fast.replace("launch_host = { value = 8,", "launch_host = { value = 1008,"), MACHINE)
    before, after = (first_tokens_s(spec, model, 20) for spec in (parse_machine(fast, MACHINE), slow))
    assert after["warm"] - before["warm"] == pytest.approx(1e-3), "it starts the run"
    hidden = 0.2  # of launches at most: those of stages whose weights came later
    assert (1 - hidden) * regions <= (after["cold"] - before["cold"]) / 1e-3 <= regions


def test_who_starts_a_cold_prompt_is_what_the_machine_file_says() -> None:
    """Of the device that any simulation has: one whose file says nothing has it captured, like a warm one."""
    said = (MADE / MACHINE).read_text().replace('value = 10, unit = "GB/s"', 'value = 49, unit = "GB/s"')
    silent = said.replace('gated_launch = "host"\n', "")
    assert silent != said
    model = synthetic_model({**CONFIG, "hidden_size": 64}, "tiny")
    by_host, captured = (first_tokens_s(parse_machine(text, MACHINE), model, 20) for text in (said, silent))
    assert by_host["warm"] == captured["warm"]
    assert by_host["cold"] > captured["cold"]


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

"""The benches on a tiny shape: fields, counters and sentences. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.system.commands import run
from tests.system.tiny import CONFIG, write_expert

from coterie.bench import experts as bench_experts
from coterie.bench import neighbour as bench_neighbour
from coterie.bench import shapes
from coterie.bench.report import Effort, Spread, interleave, paired_ratio
from coterie.core.trace import read_trace
from coterie.kernels import cpu as kernels

pytestmark = pytest.mark.usefixtures("temporary")
QUICK = ("--rounds", "2", "--seconds", "0", "--threads", "2")


def bench(*args: object) -> dict:
    """The JSON of a run; with --json it is all that is printed."""
    result = run("bench", *args, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    got = json.loads(line)
    assert got["commit"]
    assert {"cpu_model", "cpus", "memory_bytes", "isa", "load_1m"} <= set(got["machine"])
    return got


def refused(*args: object) -> str:
    result = run("bench", *args)
    assert result.exit_code == 2, result.output
    sentence = result.stderr.strip()
    assert sentence.startswith("coterie: ["), sentence
    return sentence


@pytest.mark.long
def test_speculate_repeats_as_much_as_it_says_and_answers_the_same(tmp_path: Path, temporary: Path) -> None:
    shape = tmp_path / "more.json"
    shape.write_text(json.dumps({**CONFIG, "vocab_size": 600, "hidden_size": 256}))
    got = bench("speculate", "--shape", shape, "--weights", "int8", *QUICK)
    assert got["workload"] == {**got["workload"], "weights": "made-up int8", "prompt": 64, "answer": 128}
    rows = {row["share"]: row for row in got["shares"]}
    assert list(rows) == [1, 0.95, 0.8, 0.5, 0]
    assert rows[1]["repeats"] == rows[1]["accepted"] == 1
    assert rows[1]["tokens_per_step"] > 3
    repeats = [row["repeats"] for row in rows.values()]
    assert repeats == sorted(repeats, reverse=True)
    assert repeats[2] == pytest.approx(0.8, abs=0.12)
    assert repeats[-1] < 0.05
    assert rows[0]["guessed_per_token"] < 0.05
    forms = {row["form"]: row for row in got["forms"]}
    assert list(forms) == ["a record", "a list of records", "free strings"]
    assert forms["a record"]["tokens_per_step"] > 1.5
    assert forms["a record"]["accepted"] > 0.9
    assert all(30 < row["answer_tokens"] <= 320 for row in forms.values())
    assert all(row["gain"] > 0 < row["cpu_gain"] for row in (*rows.values(), *forms.values()))
    assert not list(temporary.iterdir())


def test_fusion_prints_the_grid_and_its_counters_agree(config: Path, temporary: Path) -> None:
    got = bench("fusion", "--shape", config, "--prompt", 9, *QUICK)
    assert got["byte_counters_agree"] is True
    assert got["workload"] == {**got["workload"], "shape": str(config), "prefill_tokens": 9, "threads": 2}
    grid = {(cell["phase"], cell["way"]): cell for cell in got["grid"]}
    assert set(grid) == {(p, w) for p in ("prefill", "decode") for w in ("unfused/host", "fused/host", "fused/device")}
    for phase, tokens in (("prefill", 9), ("decode", 1)):
        unfused, host, device = (grid[phase, way] for way in ("unfused/host", "fused/host", "fused/device"))
        for cell in (unfused, host, device):
            assert cell["tokens"] == tokens
            assert cell["rounds"] == 2
            assert cell["seconds_per_step"] > 0
            assert cell["counted_bytes"] == cell["intermediate_bytes"] > 0
        assert unfused["speedup"]["median"] == 1
        assert unfused["launches"] == unfused["regions"] > host["launches"] == host["regions"]
        assert device["launches"] == 1
        assert device["regions"] == host["regions"]
        assert device["counted_bytes"] == host["counted_bytes"] < unfused["counted_bytes"]
    assert not list(temporary.iterdir())


def test_decode_counts_the_bytes_of_a_token(config: Path, temporary: Path) -> None:
    got = bench("decode", "--shape", config, "--context", 7, *QUICK)
    sizes = {name: int(np.prod(shape)) for name, shape in tensors().items()}
    embedded = CONFIG["hidden_size"]  # of the table one row is read
    read = sum(sizes.values()) - sizes["model.embed_tokens.weight"] + embedded
    assert got["weight_bytes_per_token"] == 2 * read
    head = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    assert got["kv_bytes_per_token"] == 7 * 2 * 2 * CONFIG["num_key_value_heads"] * head * 2
    assert got["read_limit"]["bytes_per_s"] > 0
    assert "read loop" in got["read_limit"]["name"]
    assert got["tokens_per_s"] == pytest.approx(1 / got["seconds_per_token"])
    assert got["read_bytes_per_s"] == pytest.approx(
        (got["weight_bytes_per_token"] + got["kv_bytes_per_token"]) / got["seconds_per_token"]
    )
    low, high = got["mbu_quartiles"]
    assert 0 < low <= got["mbu"] <= high
    assert got["batch"]["size"] == 8
    assert got["batch"]["tokens_per_s"] == pytest.approx(8 / got["batch"]["seconds_per_step"])
    rates = got["multiply_add_flops_per_s"], got["read_limit"]["bytes_per_s"]
    weights, kv, batch = got["weight_bytes_per_token"], got["kv_bytes_per_token"], got["batch"]
    by_bytes, flops = (weights + 8 * kv) / rates[1], batch["flops_per_s"] * batch["seconds_per_step"]
    limit = 8 * (weights + kv) / rates[1] / max(by_bytes, flops / rates[0])
    assert batch["gain_aim"] == pytest.approx(0.7 * limit)
    assert 0 < got["cached_flops_per_s"] < 1.5 * rates[0]
    assert 0 < got["batch"]["cached_flops_per_s"] < 1.5 * rates[0]
    assert got["peers"] == {}
    assert not list(temporary.iterdir())


def test_packed_weights_are_fewer_bytes_to_read(config: Path, temporary: Path) -> None:
    read = {
        weights: bench("decode", "--shape", config, "--context", 7, "--weights", weights, *QUICK)[
            "weight_bytes_per_token"
        ]
        for weights in ("bf16", "int8", "int4z", "int4")
    }
    assert read["int4"] < read["int4z"] < read["int8"] < read["bf16"]
    got = bench("decode", "--shape", config, "--context", 7, "--weights", "int6", *QUICK)  # whose rows are whole 64s
    assert got["workload"]["weights"] == "random int6"
    got = bench("prefill", "--shape", config, "--prompt", 5, "--weights", "int4", *QUICK)
    assert got["workload"]["weights"] == "random int4"
    assert got["workload"]["activations"] == "int16"
    assert "int5" in refused("decode", "--shape", config, "--weights", "int5")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("what", ["decode", "prefill"])
def test_activations_of_8_bits_are_for_packed_weights_and_bfloat16_for_its_own(
    config: Path, temporary: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = refused(what, "--shape", config, "--activations", "int8")
    assert all(word in sentence for word in ("--activations", "bf16 weights are not packed", "--weights int8"))
    got = bench(what, "--shape", config, "--activations", "int8", "--weights", "int8", *QUICK)
    assert got["workload"]["activations"] == "int8"
    got = bench(what, "--shape", config, "--activations", "float32", *QUICK)
    assert got["workload"]["activations"] == "float32"
    monkeypatch.setattr(kernels, "BF16_PRODUCTS", True)
    assert bench(what, "--shape", config, *QUICK)["workload"]["activations"] == "bf16"
    monkeypatch.setattr(kernels, "BF16_PRODUCTS", False)
    assert bench(what, "--shape", config, *QUICK)["workload"]["activations"] == "float32"
    got = bench(what, "--shape", config, "--activations", "bf16", *QUICK)
    assert got["workload"]["activations"] == "bf16"
    assert got["cached_flops_per_s"] > 0
    sentence = refused(what, "--shape", config, "--activations", "bf16", "--weights", "int4")
    assert all(word in sentence for word in ("--activations", "int4 weights are packed", "--weights bf16"))
    assert not list(temporary.iterdir())


def test_prefill_counts_the_flops_of_a_prompt(config: Path, temporary: Path) -> None:
    tokens = 9
    got = bench("prefill", "--shape", config, "--prompt", tokens, *QUICK)
    assert got["workload"]["prompt_tokens"] == tokens
    heads, hidden = CONFIG["num_attention_heads"], CONFIG["hidden_size"]
    layers = CONFIG["num_hidden_layers"]
    matrices = {name: shape for name, shape in tensors().items() if len(shape) == 2 and "embed" not in name}
    per_token = {name: 1 if name == "lm_head.weight" else tokens for name in matrices}
    linear = sum(2 * int(np.prod(shape)) * per_token[name] for name, shape in matrices.items())
    attention = layers * 2 * 2 * heads * (hidden // heads) * (tokens * (tokens + 1) // 2)  # causal: q k and p v
    assert linear + attention <= got["flops"] <= 1.25 * (linear + attention)  # the rest: norms, rope, softmax
    assert got["tokens_per_s"] == pytest.approx(tokens / got["seconds"])
    assert got["share_of_peak"] > 0
    assert 0 < got["cached_flops_per_s"] < 1.5 * got["peak_flops_per_s"]
    assert not list(temporary.iterdir())


def tensors() -> dict[str, tuple[int, ...]]:
    with bench_experts.random_experts(CONFIG, 1) as (model,):
        return {name: info.shape for name, info in model.checkpoint.tensors.items()}


def test_switch_prints_what_it_measured(config: Path, temporary: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    got = bench("switch", "--shape", config, "--prompt", 5, "--experts", 2, "--trace", file, *QUICK)
    trace = read_trace(file)
    assert set(trace.lanes) == {"compute", "disk->dram"}
    assert {s.name for s in trace.slices} >= {f"random-{i} {what}" for i in (0, 1) for what in ("head", "prefill 1")}
    cold = [a for a in trace.asyncs if a.kind == "request" and a.key.startswith("cold")]
    assert len(cold) == got["cold_rounds"] + 1  # the first is not counted
    for field in (
        "cold_ttft_s",
        "cold_arrival_s",
        "cached_flops_per_s",
        "fetch_s",
        "fetch_bytes_per_s",
        "warm_ttft_s",
        "disk_bytes_per_s",
        "share_of_disk",
    ):
        assert got[field] > 0, field
    assert got["cold_rounds"] == 2
    assert got["gap_pairs"] >= 2
    low, high = got["resident_switch_quartiles_s"]
    assert low <= got["resident_switch_s"] <= high
    assert any("told from the noise" in note for note in got["notes"]) == (low <= 0)
    assert any("before the longer" in note for note in got["notes"]) == (got["cold_ttft_over_floor"] < 1)
    assert isinstance(got["disk_read_is_direct"], bool)
    assert not list(temporary.iterdir())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_neighbour_compares_and_leaves_nobody_behind(
    config: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_neighbour, "STRETCH_S", 0.01)
    started, popen = [], subprocess.Popen

    def start(args, **options):
        process = popen(args, **options)
        started.extend([process] if args[0] == sys.executable else [])
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    got = bench("neighbour", "--shape", config, "--rounds", 2)
    assert got["slowdown_quartiles"][0] <= got["slowdown"] <= got["slowdown_quartiles"][1]
    assert got["rounds"] == len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_everything_ends_in_one_json_line() -> None:
    result = run("bench")
    assert result.exit_code == 0, result.output
    *shown, last = result.stdout.splitlines()
    got = json.loads(last)
    assert [one["bench"] for one in got["runs"]] == ["fusion", "decode", "prefill", "switch"]
    assert got["runs"][0]["byte_counters_agree"] is True
    for word in ("speed-up", "fastest read loop", "resident switch", "agrees with the graph's cost"):
        assert any(word in line for line in shown), word


def test_an_unknown_shape_lists_the_shapes() -> None:
    sentence = refused("fusion", "--shape", "137m")
    for word in ("137m", *shapes.SHAPES, "config.json"):
        assert word in sentence


def test_a_shape_that_is_not_run_is_refused_before_anything_is_written(config: Path, temporary: Path) -> None:
    config.write_text(json.dumps({**CONFIG, "architectures": ["NoSuchModel"], "model_type": "nosuch"}))
    assert "nosuch" in refused("decode", "--shape", config).lower()
    assert not list(temporary.iterdir())


def test_interleaving_takes_turns_and_pairs_within_rounds() -> None:
    order = []

    def way(name: str, seconds: float):
        def run() -> float:
            order.append(name)
            return seconds * len(order)  # every sample is slower than the one before

        return run

    samples = interleave({"a": way("a", 1.0), "b": way("b", 2.0)}, Effort(rounds=3, seconds=0))
    assert order == ["a", "b"] * 4
    assert samples == {"a": [3.0, 5.0, 7.0], "b": [8.0, 12.0, 16.0]}
    ratio = paired_ratio(samples["b"], samples["a"])
    assert ratio == Spread(12 / 5, (16 / 7 + 12 / 5) / 2, (12 / 5 + 8 / 3) / 2)
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [1.0, 2.0])


def test_bench_quality_compares_each_packing_with_the_unquantised_expert() -> None:
    result = run("bench", "quality", "--questions", "1", "--json")
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout.splitlines()[-1])
    for rows in (line["demo"], line["random"]):
        plain = rows.pop("unquantised")
        assert (plain["top1_agreement"], plain["greedy_answers_equal"], plain["kl_divergence"]) == (1.0, 1.0, 0.0)
        int8, *fours = (rows[name] for name in ("int8", "int4z, embedding and head int8", "int4"))
        assert 0 < int8["kl_divergence"] < fours[0]["kl_divergence"] < fours[1]["kl_divergence"] < 1
        assert int8["top1_agreement"] > 0.9
        assert 0 < rows["unquantised + bf16 activations"]["kl_divergence"] < int8["kl_divergence"]
        assert {row["tokens"] for row in rows.values()} == {plain["tokens"]}
    assert line["workload"]["demo_experts"] >= 10


def test_speculate_measures_a_draft_of_the_same_answers(tmp_path: Path) -> None:
    for name, layers in (("large", 3), ("small", 1)):
        write_expert(tmp_path / name, 3, num_hidden_layers=layers, max_position_embeddings=300)
    got = bench("speculate", "--checkpoint", tmp_path / "large", "--draft", tmp_path / "small", *QUICK)
    assert got["workload"]["draft"] == "small"
    assert [row["prompt"] for row in got["prompts"]] == ["code", "prose", "a list"]
    for row in got["prompts"]:  # of experts so small nothing is guessed
        assert (row["guessed_per_token"], row["tokens_per_step"]) == (0, 1)
        assert row["gain"] > 0 < row["cpu_gain"]
    assert "measured together" in refused("speculate", "--draft", tmp_path / "small")

"""Errors of the model: how they are counted, what is fitted to what, and that what is predicted was not put in."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from stack_fits import fit_exchanges, fit_nemo, fit_splitwise, large_steps

from coterie.bench.shapes import shape_config
from coterie.models.config import ModelConfig
from coterie.models.registry import weight_shapes
from coterie.plan.validate.called import fit_bytes_per_s
from coterie.plan.validate.gpu_serving import request_s
from coterie.plan.validate.published import by_specification, published_config
from coterie.plan.validate.rows import (
    CALIBRATION,
    VALIDATION,
    Outcome,
    Row,
    alternate,
    summary,
)
from coterie.plan.validate.run import validate
from coterie.spec.kernel import Kernel
from coterie.spec.load import load_machine
from coterie.spec.measured import ideal_s, kernels_of, measured_devices, read_table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return validate(None, shape_config)


def test_errors_are_counted_by_hand():
    rows = [Row("d", "m", name, VALIDATION, 2.0, modelled) for name, modelled in (("a", 1.0), ("b", 2.0), ("c", 2.5))]
    found = summary("d", rows)
    assert (found.n, found.worst.name) == (3, "a")
    assert found.mean == pytest.approx(0.25)
    assert found.median == pytest.approx(0.25)
    assert found.bias == pytest.approx(-0.25 / 3)


def test_sizes_at_both_ends_calibrate():
    assert list(alternate([4, 1, 2, 3]).values()) == [CALIBRATION, VALIDATION, CALIBRATION, CALIBRATION]
    assert list(alternate(range(5)).values()) == [CALIBRATION, VALIDATION] * 2 + [CALIBRATION]


@pytest.mark.parametrize(
    ("metric", "aim"), [("time per output token", 0.08), ("whole request", 0.08), ("GPU kernel", 0.08)]
)
def test_rows_that_the_model_never_saw_are_predicted(outcome, metric, aim):
    (found,) = (item for item in outcome.summaries() if (item.dataset, item.metric) == ("all", metric))
    assert found.split == VALIDATION
    assert found.n >= 20
    assert found.mean < aim, "README and log say how far; it may get better, not worse"


def published(outcome, metric, known):
    """Rows that validate, by what is timed and how that is known."""
    wanted = f"{metric}, published; {known}"
    return [row for row in outcome.rows if row.metric == wanted and row.split == VALIDATION]


@pytest.mark.parametrize(
    ("metric", "n", "mean", "before"),
    [
        ("time per output token", 19, 0.15, 0.19),
        ("time to first token", 5, 0.37, 0.386),
        ("whole request", 11, 0.175, 0.292),
    ],
)
def test_both_rules_are_held_against_the_same_published_figures(outcome, metric, n, mean, before):
    """What README, docs/sizing.md and the log say; `before`: 0.7 and 0.8 of the peaks."""
    carried, earlier = (
        published(outcome, metric, "carried over"),
        published(outcome, metric, "0.7 and 0.8 of the peaks"),
    )
    assert [row.name for row in carried] == [row.name for row in earlier]
    assert len(carried) == n
    found = [sum(abs(row.error) for row in rows) / n for rows in (carried, earlier)]
    assert found[0] < mean, "it may get better, not worse"
    assert found[1] == pytest.approx(before, abs=0.005)


def test_the_rule_before_keeps_what_was_reached_on_the_machine_itself():
    """By what the file gives, not by how its sources are worded: of GH200 both shares, of B200 neither."""
    mine, other = load_machine("gh200"), load_machine("b200")
    for spec, shares in ((mine, (mine.flops_share, mine.tier("hbm").share)), (other, (0.7, 0.8))):
        before = by_specification(spec)
        assert before.carried is None
        assert (before.flops_share, before.tier("hbm").share) == shares
        assert before.tier("dram") == spec.tier("dram")
    assert by_specification(load_machine("sn40l-node")) == load_machine("sn40l-node")


@pytest.mark.parametrize("table", ["called", "layers", "nemo", "published", "splitwise"])
def test_every_measurement_has_its_source(table):
    rows = read_table("coterie.plan.validate", f"data/{table}.csv")
    assert rows
    assert all(row["source"].strip() for row in rows)


def test_servers_without_a_gpu_are_held_against_what_is_published(outcome):
    rows = published(outcome, "time per output token", "analytic")
    assert {row.dataset.partition(":")[0] for row in rows} == {"published, epyc-9554", "published, epyc-9005-2s"}
    assert len(rows) == 3
    assert max(abs(row.error) for row in rows) < 0.23, "docs/sizing.md says 9 to 22 %; it may get better, not worse"


def test_machines_by_specification_are_held_against_what_is_published(outcome):
    """No aim: how far off they are, which docs/sizing.md says; the one row that calibrates is met."""
    rows = [row for row in outcome.rows if row.dataset.startswith("published, ")]
    machines = {row.dataset.removeprefix("published, ") for row in rows}
    assert machines > {"rtx-4090", "rtx-5090", "dgx-spark", "mac-studio-m3-ultra", "strix-halo", "mi300x-platform"}
    fitted = [row for row in rows if row.split == CALIBRATION]
    assert {row.name for row in fitted} == {fitted[0].name}
    assert all(abs(row.error) < 0.03 for row in fitted)
    assert not any(item.aim for item in outcome.summaries() if "published" in item.metric)


@pytest.mark.parametrize(("model", "params"), [("llama-3.2-3b", 3.21e9), ("qwen2.5-7b", 7.62e9), ("phi-4", 14.66e9)])
def test_shapes_that_are_in_no_zoo_have_the_published_number_of_weights(model, params):
    """llama-bench prints 3.21 B, 7.62 B and 14.66 B for them."""
    shapes = weight_shapes(ModelConfig.from_hf(published_config(model), model))
    assert sum(prod(shape) for shape in shapes.values()) == pytest.approx(params, rel=2e-3)


def test_gemms_and_prefill_attention_between_rows_are_within_ten_percent(outcome):
    for dataset in ("AIConfigurator gemm", "AIConfigurator attention-prefill"):
        (found,) = (s for s in outcome.summaries() if (s.dataset, s.split) == (dataset, VALIDATION))
        assert found.mean < 0.1


@pytest.mark.parametrize(("family", "n", "aim"), [("fp8", 80, 0.06), ("int8", 12, 0.07), ("int4", 12, 0.11)])
def test_products_with_other_weights_between_rows(outcome, family, n, aim):
    """What docs/sizing.md says; it may get better, not worse."""
    (found,) = (s for s in outcome.summaries() if (s.dataset, s.split) == (f"AIConfigurator gemm-{family}", VALIDATION))
    assert found.n == n
    assert found.mean < aim


def test_rows_that_cannot_be_true_are_dropped_and_listed(outcome):
    reasons = {(item.dataset, item.name): item.reason for item in outcome.dropped}
    assert "where 16-bit weights need" in reasons["NeMo llama-2-13b", "dgx-a100 1 GPUs, batch 1"]
    assert {dataset for dataset, _ in reasons} == {"NeMo llama-2-13b"}
    assert len(reasons) == 10


def test_decode_attention_between_rows_is_within_eight_percent(outcome):
    (found,) = (
        s for s in outcome.summaries() if (s.dataset, s.split) == ("AIConfigurator attention-decode", VALIDATION)
    )
    assert found.n == 74, "none is dropped: the bench's keys and values were one memory"
    assert found.mean < 0.08
    first = [abs(r.error) for r in outcome.rows if r.dataset == found.dataset and r.metric == found.metric
             and r.split == VALIDATION and r.name.split()[0] in ("a100", "h100", "h200")]  # fmt: skip
    assert len(first) == 30
    assert sum(first) / len(first) < 0.07, "of the GPUs by which the forms were chosen"


def test_each_gpu_says_how_far_off_it_is_and_none_is_far(outcome):
    (said,) = (text for text in outcome.caveats if "held out, by GPU" in text)
    assert all(f"{device} " in said for device in measured_devices())
    of_one = {device: [] for device in measured_devices()}
    for row in outcome.rows:
        if row.dataset.startswith("AIConfigurator") and row.split == VALIDATION:
            of_one[row.name.split()[0]].append(abs(row.error))
    assert len(of_one["gb300"]) == 52
    assert f"gb300 {sum(of_one['gb300']) / 52:.1%} (" in said
    assert all(sum(errors) / len(errors) < 0.085 for errors in of_one.values())


def test_what_was_fitted_to_kernels_is_listed(outcome):
    said = [text for text in outcome.caveats if text.startswith("fitted, ")]
    assert [text.split()[1] for text in said] == ["a100:", "a100:", "h100:", "h200:"]
    assert "1.65 TB/s above their call's 45 us" in said[0]
    assert all("a wave of thread blocks" in text for text in said[1:])


def test_operators_timed_from_the_host_have_their_call_in_them(outcome):
    """LLMCompass: q, k and v of decode are three calls of 21 us and three gemms; GELU is 45 us whatever it does."""
    rows = {row.name: row for row in outcome.rows if row.dataset.startswith("LLMCompass")}
    gemm = ideal_s("a100", kernel := Kernel("gemm", (8, 3072, 12288))) / kernels_of("a100").speed(kernel).util
    assert rows["a100 qkv decode"].modelled_s == pytest.approx(3 * (21e-6 + gemm))
    assert rows["a100 gelu decode"].modelled_s == pytest.approx(45e-6, rel=0.01)
    assert rows["a100 gelu prefill"].modelled_s > 805306368 / 2.039e12
    single = [row for row in outcome.rows if row.dataset == "LLMCompass, single operators"]
    assert len(single) == 42
    assert {row.split for row in single} == {CALIBRATION}
    held = [row for row in rows.values() if row.split == VALIDATION and "reduce" not in row.name]
    assert sum(abs(row.error) for row in held) / len(held) < 0.10


def test_a_rate_above_a_call_is_found_again_and_leaving_an_operator_out_hardly_moves_it():
    points = [(size, 45e-6 + size / 1.5e12) for size in (1e4, 1e6, 1e8, 1e9)]
    assert fit_bytes_per_s(points) == pytest.approx(1.5e12)
    known = [
        (float(raw["bytes"]), float(raw["us"]) * 1e-6) for raw in read_table("coterie.plan.validate", "data/called.csv")
    ]
    errors = []
    for i, (size, seconds) in enumerate(known):
        rate = fit_bytes_per_s(known[:i] + known[i + 1 :])
        errors.append(abs((45e-6 + size / rate) / seconds - 1))
    assert sum(errors) / len(errors) < 0.09


def test_what_is_said_of_long_prompts_is_in_the_data(outcome):
    rows = {row.name: row.measured_s for row in first_tokens(outcome, "llama-2-70b")}
    grown = {
        (name, gpus): rows[f"{name} {gpus} GPUs, prompt 8192, batch 1"]
        / rows[f"{name} {gpus} GPUs, prompt 2048, batch 1"]
        for name in ("dgx-h100", "dgx-a100")
        for gpus in (2, 4, 8)
    }
    said = next(text for text in outcome.caveats if "four times the tokens" in text)
    assert f"{grown['dgx-h100', 2]:.1f} times as long on 2 GPUs" in said
    assert f"{grown['dgx-h100', 4]:.1f} and {grown['dgx-a100', 4]:.1f} on 4" in said
    assert f"{grown['dgx-a100', 8]:.1f} and {grown['dgx-h100', 8]:.1f} on 8" in said


def test_a_token_above_2048_costs_more_on_more_gpus_as_is_said(outcome):
    rows = {row.name: row.measured_s for row in first_tokens(outcome, "llama-2-70b")}

    def each(name, gpus, low, high):
        times = [rows[f"{name} {gpus} GPUs, prompt {tokens}, batch 1"] for tokens in (low, high)]
        return (times[1] - times[0]) / (high - low)

    said = next(text for text in outcome.caveats if "above 2048 tokens" in text)
    for gpus in (2, 4, 8):
        dearer = [each(name, gpus, 2048, 4096) / each(name, gpus, 1024, 2048) for name in ("dgx-h100", "dgx-a100")]
        assert f"{min(dearer):.1f} to {max(dearer):.1f} on {gpus}" in said


def test_short_prompts_take_what_software_needs_to_issue_them(outcome):
    rows = {row.name: row for row in first_tokens(outcome, "llama-2-70b")}
    fitted = [name for name, row in rows.items() if row.split == CALIBRATION]
    assert sorted(fitted) == [f"dgx-{gpu} {n} GPUs, prompt 128, batch 1" for gpu in ("a100", "h100") for n in (4, 8)]
    held = [row for name, row in rows.items() if "prompt 256" in name]
    assert len(held) == 6
    assert sum(abs(row.error) for row in held) / len(held) < 0.08


def test_large_steps_of_one_model_say_how_those_of_another_run(outcome):
    """exchange_share is from BLOOM-176B on 8 GPUs alone: no row of Llama-2-70B above 2048 tokens calibrates."""
    rows = first_tokens(outcome, "bloom-176b")
    assert len(rows) == 26
    assert all((row.split == CALIBRATION) == (tokens_of(row) >= 2048) for row in rows)
    llama = first_tokens(outcome, "llama-2-70b")
    assert all(row.split == VALIDATION for row in llama if tokens_of(row) > 2048)
    left_out = []
    for i, (measured_s, alone_s, exchanges_s) in enumerate(large_steps()):
        modelled_s = alone_s - exchanges_s + exchanges_s / fit_exchanges(without=i)
        left_out.append(abs(modelled_s / measured_s - 1))
    assert len(left_out) == 12
    assert sum(left_out) / len(left_out) < 0.09


def test_what_is_said_of_two_models_large_steps_is_in_the_data(outcome):
    """Of a token above 2048 tokens, what it costs beyond one of a step of 2048: BLOOM-176B's next to Llama-2-70B's."""
    times = {
        model: {row.name: (row.measured_s / tokens_of(row), tokens_of(row)) for row in first_tokens(outcome, model)}
        for model in ("bloom-176b", "llama-2-70b")
    }
    for machine, said in (("dgx-h100", (1.1, 1.8)), ("dgx-a100", (0.8, 3.2))):
        base = f"{machine} 8 GPUs, prompt 2048, batch 1"
        large = [n for n, (_, tokens) in times["bloom-176b"].items() if n.startswith(machine) and tokens > 2048]
        more = [[times[model][name][0] - times[model][base][0] for name in large] for model in times]
        ratios = [bloom / llama for bloom, llama in zip(*more, strict=True)]
        assert len(ratios) == 6
        assert (round(min(ratios), 1), round(max(ratios), 1)) == said


def test_first_tokens_are_as_far_off_as_the_log_says(outcome):
    """Llama-2-70B: all 76 rows but the four that calibrate. BLOOM-176B: those below 2048 tokens."""
    rows = [row for row in first_tokens(outcome, "llama-2-70b") if row.split == VALIDATION]
    assert len(rows) == 72
    short = [abs(row.error) for row in rows if tokens_of(row) <= 2048]
    long = [abs(row.error) for row in rows if tokens_of(row) > 2048]
    assert sum(short) / len(short) < 0.10
    assert sum(long) / len(long) < 0.13
    assert sum(short + long) / len(rows) < 0.12, "the aim is 15 %"
    other = {row: abs(row.error) for row in first_tokens(outcome, "bloom-176b") if tokens_of(row) <= 2048}
    assert len(other) == 14
    assert sum(other.values()) / len(other) < 0.08
    held = [error for row, error in other.items() if row.split == VALIDATION]
    assert len(held) == 10, "those of 2048 tokens, the best of them, set where exchanges slow down"
    assert sum(held) / len(held) < 0.09


def test_a_floor_fitted_to_one_model_is_too_short_for_another_as_is_said(outcome):
    wanted = "SplitwiseSim bloom-176b", "time per output token"
    tokens = [row for row in outcome.rows if (row.dataset, row.metric) == wanted]
    assert len(tokens) == 26
    assert all(row.split == VALIDATION for row in tokens)
    errors = [-100 * row.error for row in tokens]
    said = next(text for text in outcome.caveats if "too short" in text)
    assert f"{min(errors):.0f} to {max(errors):.0f} % too short" in said


def first_tokens(outcome, model):
    """Rows of SplitwiseSim."""
    dataset = f"SplitwiseSim {model}"
    return [row for row in outcome.rows if (row.dataset, row.metric) == (dataset, "time to first token")]


def tokens_of(row):
    """In a step: prompt times batch."""
    words = row.name.replace(",", "").split()
    return int(words[4]) * int(words[6])


def test_factors_of_stacks_are_what_their_calibration_rows_give():
    for machine, gpu in (("dgx-a100", "a100"), ("dgx-h100", "h100")):
        nemo, splitwise = (load_machine(f"{machine}:stack={stack}") for stack in ("nemo-2023", "splitwise-2023"))
        fitted = fit_nemo(machine)
        assert nemo.step_host_s == pytest.approx(fitted["step_host"], rel=0.02), gpu
        assert nemo.step_sequence_s == pytest.approx(fitted["step_sequence"], rel=0.02), gpu
        fitted = fit_splitwise(machine)
        assert splitwise.kernel_share == pytest.approx(fitted["kernel_share"], rel=0.02), gpu
        assert splitwise.step_floor_s == pytest.approx(fitted["step_floor"], rel=0.02), gpu
        assert splitwise.prompt_floor_s == pytest.approx(fitted["prompt_floor"], rel=0.02), gpu
        assert splitwise.step_sequence_s == pytest.approx(fitted["step_sequence"], rel=0.02), gpu


def test_one_share_of_exchanges_is_what_all_its_rows_give():
    for machine in ("dgx-a100", "dgx-h100"):
        spec = load_machine(f"{machine}:stack=splitwise-2023")
        assert spec.exchange_share == pytest.approx(fit_exchanges(), rel=0.02), machine
        assert spec.large_step == 2048


def test_the_papers_twenty_tokens_are_predicted_and_not_put_in(outcome):
    """136.5 and 97.6 ms: NeMo, Llama-2-7B on 8 GPUs, the DGX side of the paper's Fig. 12."""
    rows = {row.name: row for row in outcome.rows if row.dataset == "NeMo llama-2-7b"}
    for name, measured_s in (("dgx-a100 8 GPUs, batch 1", 0.1365), ("dgx-h100 8 GPUs, batch 1", 0.0976)):
        assert rows[name].measured_s == pytest.approx(measured_s)
        assert rows[name].split == VALIDATION
        assert abs(rows[name].error) < 0.15
    assert all((row.split == CALIBRATION) == (" 1 GPUs" in name) for name, row in rows.items())


def test_a_request_is_a_prompt_and_a_step_for_every_further_token():
    spec = load_machine("dgx-h100:units=8")
    one, many = (request_s(spec, "llama-2-7b", 1, 128, tokens) for tokens in (2, 20))
    assert many > one
    assert (many - one) / 18 == pytest.approx(request_s(spec, "llama-2-7b", 1, 128, 3) - one, rel=0.05)

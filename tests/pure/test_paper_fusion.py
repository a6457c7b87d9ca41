"""Figures 10 and 11: launches counted, work priced, and the fit that says what it was fitted to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coterie.plan.paper import figure10
from coterie.plan.paper.benchmarks import benchmarks, fused, launches, unfused
from coterie.plan.paper.exhibits import exhibits
from coterie.plan.paper.figure10 import MODES, best_batch, fit, left_out, ranges
from coterie.plan.paper.figure10_notes import launch_s, notes
from coterie.plan.paper.figure10_times import NODE, Shared, Times, times
from coterie.plan.paper.machine import spec
from coterie.plan.paper.published import published
from coterie.plan.paper.row import Kind

NAMED = {benchmark.name: benchmark for benchmark in benchmarks()}
AIM = 0.25


def test_the_benchmarks_are_those_of_the_figures() -> None:
    assert list(NAMED) == list(published("figure-11"))
    assert [row["name"] for row in figure10.data("figure-10")["benchmark"]] == list(NAMED)


@pytest.mark.parametrize("name", ["llama7B-4k-decode", "mistral7B-2k-decode", "mistral7B-4k-decode"])
def test_decode_counts_are_within_the_aim(name: str) -> None:
    ratio = launches(unfused(NAMED[name])) / launches(fused(NAMED[name]))
    assert abs(ratio / published("figure-11")[name].value - 1) < AIM


def test_figure_11_shows_every_ratio_and_says_why_one_is_far_off() -> None:
    (exhibit,) = exhibits(["figure-11"])
    assert [row.row for row in exhibit.rows] == list(NAMED)
    for row in exhibit.rows:
        assert row.kind is Kind.PREDICTED
        assert row.ours is not None
        if row.error is not None and row.error > 0.4:
            assert "a layer" in row.note


def test_speedups_are_ratios_of_times() -> None:
    at = Times(unfused_kernels=100, fused_kernels=10, layer=10, unfused_work_s=1e-3, fused_work_s=4e-4)
    shared = Shared(host_launch_s=2e-6, host_program_s=20e-6, device_s=5e-6, unfused_share=0.5)
    unfused_s = 0.5e-3 + 100 * (2e-6 + 2e-6)
    assert at.speedups(shared) == pytest.approx(
        {"SO": unfused_s / (4e-4 + 10 * 22e-6), "HO": unfused_s / (4e-4 + 10 * 5e-6)}
    )
    # The hardware's launch is the file's cheaper one, so HO is never the slower of the two.
    of_file = Shared.of_file(spec(NODE))
    for benchmark in benchmarks():
        found = times(benchmark, 1).speedups(of_file)
        assert found["HO"] >= found["SO"] > 1


def test_a_fit_finds_what_made_its_values() -> None:
    """Values made by other shared numbers, at batch 1: the fit comes nearer to them than the file does."""
    shared = replace(Shared.of_file(spec(NODE)), host_program_s=200e-6, unfused_share=0.6)
    cases = tuple(
        (NAMED[n], times(NAMED[n], 1).speedups(shared)) for n in ("llama7B-4k-decode", "falcon40B-2k-prefill")
    )
    found = fit(cases)
    priced = figure10._priced(cases)
    assert figure10._total(priced, found) < 0.25 * figure10._total(priced, Shared.of_file(spec(NODE)))
    for name, (low, high) in ranges().items():
        assert low * 0.999 <= getattr(found, name) <= high * 1.001
    batch = best_batch(cases[0][0], cases[0][1], shared)
    assert batch == 1
    assert 0 <= left_out(cases) < 5


def test_figure_10_shows_predicted_and_fitted_rows_and_all_its_constants() -> None:
    (exhibit,) = exhibits(["figure-10"])
    for name in NAMED:
        for mode in MODES:
            kinds = [row.kind for row in exhibit.rows if row.row == f"{name}, {mode}"]
            assert kinds == [Kind.PREDICTED, Kind.FITTED]
    shared = [c for c in exhibit.fitted if not c.name.startswith("batch of ")]
    assert len(shared) == 4
    assert [c.name for c in exhibit.fitted if c not in shared] == [f"batch of {b.name}" for b in benchmarks()]
    assert all(c.left_out_error is not None for c in exhibit.fitted)
    errors = sorted(abs(row.error) for row in exhibit.rows if row.kind is Kind.FITTED and row.error is not None)
    assert errors[len(errors) // 2] < AIM


def test_the_notes_of_figure_10_follow_the_values():
    values = {name: {"SO": 1.5, "HO": 3.0} for name in NAMED}
    said = notes(values)
    assert len(said) == 5
    assert "3.00x is published beside 3.00x" in said[3]
    assert "can be nearer than 1.0x to both" in said[2]
    values["llama7B-4k-prefill"] = {"SO": 1.5, "HO": 12.0}
    assert (
        "12.0x and 3.0x are published: no model without a number for each can be nearer than 2.0x" in notes(values)[2]
    )


def test_what_a_launch_must_cost_gives_back_the_two_speedups():
    at, shared = Times(600, 34, 18, 10e-3, 2e-3), Shared(20e-6, 0.0, 5e-6, 1.0)
    more_s = launch_s(at, {"SO": 2.0, "HO": 5.0}, shared)
    hardware_s = at.fused_work_s + at.fused_kernels * shared.device_s
    assert (hardware_s + at.fused_kernels * more_s) / hardware_s == pytest.approx(5.0 / 2.0)


def test_batches_are_those_at_which_a_layer_is_one_section() -> None:
    """A backward layer of Llama-2-7B holds the gradients of all keys: 16 x 4096 tokens have no room."""
    train, decode = NAMED["llama7B-4k-train"], NAMED["llama7B-4k-decode"]
    assert figure10._batches(train) == (1, 2, 4, 8)
    assert figure10._batches(decode) == figure10.BATCHES
    values = dict.fromkeys(MODES, 1e9)
    assert best_batch(train, values, Shared.of_file(spec(NODE))) in (1, 2, 4, 8)

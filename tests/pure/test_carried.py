"""Rates that are carried over to machines without measured kernels: where they are from, and how far off they are."""

from __future__ import annotations

from statistics import mean

import pytest

from coterie.core.errors import NotFoundError
from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import step_time
from coterie.graph.compile import compile_graph
from coterie.models.zoo import zoo_graph
from coterie.plan.validate.carry import (
    ARCHITECTURES,
    CARRIED_KERNEL,
    SPECIFIED_KERNEL,
    architecture_of,
    carried_rates,
    carry_rows,
    fit_rates,
    kernel_s,
)
from coterie.spec.carried import FAMILIES, PREFILL, load_carried
from coterie.spec.kernel import DECODE, GEMM, GEMM_FP8
from coterie.spec.load import load_machine
from coterie.spec.machine import KernelRates
from coterie.spec.measured import CARRIED, measured_devices


def test_rates_that_made_the_times_are_found_again():
    made = KernelRates(5e-6, 0.72, 0.9)
    points = [(f, b, kernel_s(made, f, b)) for f in (1e-6, 1e-5, 1e-3) for b in (1e-6, 2e-5, 3e-4)]
    found = fit_rates(points)
    assert (found.fixed_s, found.flops_share, found.bytes_share) == pytest.approx((5e-6, 0.72, 0.9), rel=0.02)


def test_what_ships_is_what_all_measured_kernels_give():
    carried = load_carried("gpu")
    shipped = (carried.gemm, carried.gemm_fp8, carried.prefill, carried.decode)
    for family, rates in zip((GEMM, GEMM_FP8, PREFILL, DECODE), shipped, strict=True):
        fitted = carried_rates(family)
        assert rates.fixed_s == pytest.approx(fitted.fixed_s, rel=0.02), family
        assert rates.flops_share == pytest.approx(fitted.flops_share, rel=0.02), family
        assert rates.bytes_share == pytest.approx(fitted.bytes_share, rel=0.02), family


def test_every_measured_gpu_is_of_one_architecture():
    assert sorted(device for devices in ARCHITECTURES.values() for device in devices) == sorted(measured_devices())


# By family, of the eight GPUs that came first and of the GB300, which came later; it may get better, not worse.
MAX_APART = {
    "eight": {GEMM: 0.125, GEMM_FP8: 0.15, PREFILL: 0.17, DECODE: 0.26},
    "gb300": {GEMM: 0.1, GEMM_FP8: 0.12, PREFILL: 0.22, DECODE: 0.34},
}


@pytest.mark.parametrize("gpus", MAX_APART)
def test_a_gpus_kernels_are_predicted_from_other_architectures(gpus):
    """Nearer than by the rule of before, 0.7 and 0.8 of the peaks."""
    rows = [row for row in carry_rows() if (row.name.split()[0] == "gb300") == (gpus == "gb300")]
    errors = {
        (metric, family): mean(abs(row.error) for row in rows if row.metric == metric and row.dataset.endswith(family))
        for metric in (CARRIED_KERNEL, SPECIFIED_KERNEL)
        for family in FAMILIES
    }
    for family in FAMILIES:
        assert errors[CARRIED_KERNEL, family] < min(MAX_APART[gpus][family], errors[SPECIFIED_KERNEL, family]), family


def test_no_gpu_is_predicted_from_its_own_architecture():
    for family in FAMILIES:
        assert carried_rates(family, architecture_of("h100")) == carried_rates(family, architecture_of("h200"))
        assert carried_rates(family, architecture_of("h100")) != carried_rates(family)


def test_a_gpu_without_an_architecture_is_refused(monkeypatch):
    with pytest.raises(NotFoundError, match=r"\[tpu\] has no architecture.*; use one of a100, h100, .*rtx-pro-6000"):
        architecture_of("tpu")
    monkeypatch.setattr("coterie.plan.validate.carry.measured_devices", lambda: ("h100", "tpu"))
    with pytest.raises(NotFoundError, match="tpu"):  # raised inside a generator, where StopIteration would not get out
        list(carry_rows())


def test_a_machine_says_that_its_shares_are_carried_over_and_whose_own_are_not():
    spec, carried = load_machine("mi300x"), load_carried("gpu")
    assert spec.carried is not None
    assert spec.flops_share == spec.carried.gemm.flops_share == 0.6
    assert "carried over" not in spec.flops_share_source
    assert spec.tier("hbm").share == carried.gemm.bytes_share
    assert "carried over, not measured on this machine" in spec.tier("hbm").share_source
    assert spec.carried.prefill.flops_share == pytest.approx(
        carried.prefill.flops_share * 0.6 / carried.gemm.flops_share
    )
    assert any(note.startswith("carried over") for note in spec.notes)
    assert "carried over" in spec.provenance
    assert "measured on h100" in load_machine("h100").provenance
    assert "carried over" in load_machine("h100:kernels=none").provenance
    with pytest.raises(NotFoundError, match="no kernels are carried over"):
        load_carried("nowhere")


def test_a_region_takes_a_fixed_time_and_its_bytes_or_its_flops():
    """By hand: gate and up of Llama 2 7B on one MI300X."""
    spec = load_machine("mi300x")
    program = compile_graph(zoo_graph("llama-2-7b"), spec.rule_set)
    assert spec.carried is not None
    rates = spec.carried.gemm
    row = next(r for r in step_time(spec, program, Sizes.decode(1, 64)).rows if r.kernel == "norm_gate_up_silu_mul")
    assert row.provenance == CARRIED
    assert row.launch_s == pytest.approx(spec.launch_device_s + rates.fixed_s)
    assert row.work_s == pytest.approx(2 * 11008 * 4096 * 2 / (5.3e12 * rates.bytes_share), rel=0.01)
    row = next(r for r in step_time(spec, program, Sizes.prefill(1, 4096)).rows if r.kernel == "norm_gate_up_silu_mul")
    assert row.work_s == pytest.approx(2 * 4096 * 2 * 11008 * 4096 / (1307.4e12 * 0.6), rel=0.01)
    row = next(r for r in step_time(spec, program, Sizes.decode(1, 4096)).rows if r.kernel == "attention")
    assert row.launch_s == pytest.approx(spec.launch_device_s + spec.carried.decode.fixed_s)

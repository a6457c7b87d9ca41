"""Products are priced by the type of their weights: by kernels measured for it, and what is carried over says so."""

from __future__ import annotations

import pytest

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError
from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import roofline_s, step_time
from coterie.graph.compile import compile_graph
from coterie.models.model import synthetic_model, with_kv_type
from coterie.models.packing import KEY, Packing, packing_of
from coterie.models.zoo import zoo_config
from coterie.plan.known import provenance
from coterie.plan.validate.published import packed_program
from coterie.spec.load import load_machine
from coterie.spec.measured import CARRIED, peaks

ONE, MANY = Sizes.decode(8, 4096), Sizes.prefill(1, 4096)
MANY_KEYS = Sizes.decode(32, 8192)


def priced(machine, weights, sizes):
    spec = load_machine(machine)
    return step_time(spec, packed_program("llama-3.1-8b", weights, "", spec.rule_set), sizes)


def of_layers(step):
    return [row for row in step.rows if "gate_up" in row.kernel]


def test_a_product_of_fp8_takes_what_was_measured():
    """Gate and up of an 8B are 28672 rows of 4096: between the measured 12288 x 4096 and what memory allows."""
    spec = load_machine("h100")
    row = of_layers(priced("h100", "fp8", Sizes.decode(1, 64)))[0]
    assert row.provenance == "transferred"
    least = 28672 * 4096 / spec.tier("hbm").bytes_per_s
    assert least < row.work_s < 29.6e-6 * 28672 / 12288
    row = of_layers(priced("h100", "fp8", MANY))[0]
    flops = 2 * 4096 * 28672 * 4096
    assert flops / 1978e12 < row.work_s < flops / 989e12, "by arithmetic of 8 bits"


BLACKWELL = ("b200", "b300", "gb200:units=1", "gb300:units=1")


@pytest.mark.parametrize("machine", ["h100", "h200", *BLACKWELL, "l40s", "gh200"])
@pytest.mark.parametrize("sizes", [ONE, MANY])
def test_fp8_is_never_below_the_peaks_and_gains(machine, sizes):
    spec = load_machine(machine)
    program = packed_program("llama-3.1-8b", "fp8", "", spec.rule_set)
    seconds = step_time(spec, program, sizes).seconds
    assert spec.fp8_times == pytest.approx(2, rel=0.02)
    assert roofline_s(spec, program, sizes) < seconds
    if sizes is MANY or machine not in BLACKWELL:  # there small ones were measured to be slower
        assert seconds < priced(machine, "", sizes).seconds


def test_without_arithmetic_for_fp8_it_is_widened():
    """An A100 has none: a long prompt waits for arithmetic of 16 bits, a token reads half."""
    assert load_machine("dgx-a100:units=1").fp8_times == 1
    of_16, of_8 = (priced("dgx-a100:units=1,kernels=none", w, MANY) for w in ("", "fp8"))
    assert of_layers(of_8)[0].compute_s == pytest.approx(of_layers(of_16)[0].compute_s)
    one = priced("dgx-a100:units=1", "fp8", ONE), priced("dgx-a100:units=1", "", ONE)
    assert of_layers(one[0])[0].provenance == CARRIED
    assert one[0].seconds < one[1].seconds


def test_int8_and_int4_of_an_a100_are_measured_and_of_others_carried_over():
    for weights in ("int8", "int4"):
        assert of_layers(priced("dgx-a100:units=1", weights, ONE))[0].provenance != CARRIED
        assert of_layers(priced("h100", weights, ONE))[0].provenance == CARRIED


def test_fp8_has_twice_the_peak_where_it_was_measured():
    assert peaks("h100", "gemm-fp8")[0] == pytest.approx(2 * peaks("h100", "gemm")[0])
    assert peaks("h100", "gemm-int8") == peaks("h100", "gemm")


@pytest.mark.parametrize(
    ("machine", "weights", "said"),
    [
        ("h100", DType.F8_E4M3, None),
        ("h100", DType.Q8, "kernels measured on h100; products with int8 weights by what others reach of their peaks"),
        ("dgx-a100", DType.Q4, None),
        ("mi300x", DType.F8_E4M3, "what others reach of their peaks, carried over"),
    ],
)
def test_a_plan_says_for_which_weights_nothing_was_measured(machine, weights, said):
    raw = {**zoo_config("llama-3.1-8b"), KEY: Packing(weights, None).to_config()}
    spec = load_machine(machine)
    found = provenance(spec, [synthetic_model(raw, "m", DType.BF16)])
    assert found == spec.provenance if said is None else found.startswith(said)


def test_no_expert_with_bytes_is_of_fp8():
    """Nothing runs it: what others quantised becomes a type that runs (coterie quantize)."""
    raw = {KEY: Packing(DType.F8_E4M3, None).to_config()}
    with pytest.raises(CheckpointError, match="layers is 'fp8'; it must be one of"):
        packing_of(raw, "config.json")
    assert packing_of(raw, "m", has_bytes=False) == Packing(DType.F8_E4M3, None)


def test_a_plan_says_that_fp8_is_computed_as_fast_as_16_bits():
    raw = zoo_config("llama-3.1-8b")
    whole, fp8 = synthetic_model(raw, "a"), synthetic_model({**raw, KEY: Packing(DType.F8_E4M3, None).to_config()}, "a")
    says = "FP8 is computed as fast as 16 bits"
    assert says in provenance(load_machine("mi300x"), [fp8])
    assert says not in provenance(load_machine("mi300x"), [whole])
    assert says not in provenance(load_machine("h100"), [fp8])


def test_int8_keys_and_values_take_no_more_time_and_a_plan_says_what_was_measured():
    """By bandwidth a token reads 34 bytes where it read 64; measured attention keeps its time."""
    model = synthetic_model(zoo_config("llama-3.1-8b"), "a")
    kept = with_kv_type(model, "int8")
    for machine, gains in (("mi300x", True), ("h100", False)):
        spec = load_machine(machine)
        of_16, of_8 = (step_time(spec, compile_graph(m.graph, spec.rule_set), MANY_KEYS).seconds for m in (model, kept))
        assert of_8 < 0.9 * of_16 if gains else of_8 == pytest.approx(of_16, rel=0.01)
    says = "attention over int8 keys and values as over those of 16 bits"
    assert says in provenance(load_machine("h100"), [kept])
    assert says not in provenance(load_machine("h100"), [model])
    assert says not in provenance(load_machine("mi300x"), [kept])

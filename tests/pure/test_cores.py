"""Machines that compute with their cores alone: threads, memory channels, sockets, and how evenly work is divided."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from coterie.bench.shapes import shape_config
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.modelled import division
from coterie.devices.modelled.division import Division
from coterie.devices.modelled.price import step_time
from coterie.graph.compile import compile_graph
from coterie.models.model import declared_dtype, synthetic_model
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def test_threads_bring_arithmetic_and_channels_bring_bandwidth():
    whole, less = load_machine("epyc-9554"), load_machine("epyc-9554:threads=16,channels=8")
    assert whole.cores is not None
    assert less.cores is not None
    assert (whole.cores.threads, less.cores.threads) == (64, 16)
    assert less.flops_per_s == pytest.approx(whole.flops_per_s / 4)
    assert less.tier("dram").bytes_per_s == pytest.approx(whole.tier("dram").bytes_per_s * 8 / 12)
    assert less.launch_device_s < whole.launch_device_s, "fewer threads to wait for"


def test_sockets_count_their_cores_and_what_passes_between_them_bounds_both():
    two, one = load_machine("epyc-9005-2s"), load_machine("epyc-9005-2s:units=1")
    assert two.cores is not None
    assert one.cores is not None
    assert (two.cores.threads, one.cores.threads) == (256, 128)
    assert one.tier("dram").achieved_bytes_per_s == pytest.approx(0.67 * 614.4e9)
    assert two.tier("dram").achieved_bytes_per_s == pytest.approx(4 * 192e9), "half of what each reads is the other's"
    fast = load_machine("epyc-9005-2s:cores.into_socket=high")
    assert fast.tier("dram").achieved_bytes_per_s == pytest.approx(2 * 0.67 * 614.4e9), "memory bounds it then"
    assert two.flops_per_s == pytest.approx(2 * one.flops_per_s)


@pytest.mark.parametrize(
    ("ref", "key", "fact"),
    [
        ("epyc-9554:threads=65", "threads", "'65'"),
        ("epyc-9554:threads=0", "threads", "'0'"),
        ("epyc-9554:channels=x", "channels", "'x'"),
        ("h100:threads=2", "threads", "counts no cores"),
    ],
)
def test_settings_that_a_machine_cannot_have_are_refused(ref, key, fact):
    with pytest.raises(UsageError, match=fact) as caught:
        load_machine(ref)
    assert caught.value.where.endswith(f": {key}")


# docs/architecture.md, More cores; counted by tests/native/division.cpp from the kernels' own division.
SHAPES = {"135M": (576, 1536, 9, 3, 64), "0.5B": (896, 4864, 14, 2, 64), "1.5B": (1536, 8960, 12, 2, 128)}
LONGEST = {
    "135M": {4: 1.01, 8: 1.05, 16: 1.12, 32: 1.61, 64: 1.94},
    "0.5B": {4: 1.01, 8: 1.02, 16: 1.13, 32: 1.13, 64: 1.38},
    "1.5B": {4: 1.00, 8: 1.00, 16: 1.02, 32: 1.20, 64: 1.40},
}


def test_the_sizes_of_units_are_those_of_the_kernels():
    """As the headers say them that the kernels are compiled from."""
    said = {}
    for name in ("tile.h", "attend_span.h"):
        said |= dict(re.findall(r"constexpr int64_t (\w+) = ([0-9]+);", (CSRC / name).read_text()))
    names = ("kTileRows", "kManyBlocks", "kFewTokens", "kManyTokens", "kSpan")
    ours = (division.UNIT_ROWS, division.NARROW_UNITS, division.FEW_TOKENS, division.TILE_TOKENS, division.SPAN)
    assert tuple(int(said[name]) for name in names) == ours


@pytest.mark.parametrize("shape", LONGEST)
def test_a_layer_is_divided_as_the_kernels_divide_it(shape):
    hidden, inner, heads, kv_heads, channels = SHAPES[shape]
    raw = {
        **shape_config("135m"),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": channels,
        "num_hidden_layers": 2,
    }
    program = compile_graph(synthetic_model(raw, shape, declared_dtype(raw, shape)).graph, "cache")
    layer = [region for region in program.regions if region.stage == "layers.1" and region.kernel != "attention"]
    for threads, said in LONGEST[shape].items():
        longest = mean = 0.0
        for region in layer:
            weights = [program.graph.values[op.inputs[1]].shape for op in region.ops if op.kind == "linear"]
            size = sum(rows * columns for rows, columns in weights)
            mean += size
            longest += size * Division(program.graph, region).longest_over_mean(Sizes.decode(1, 64), threads)
        assert longest / mean == pytest.approx(said, abs=0.011), threads


def test_a_step_is_as_long_as_its_busiest_thread():
    """By hand, of one region: bytes at the machine's rate, or what the thread with most to do reads by itself."""
    spec = load_machine("epyc-9554:threads=8")
    program = compile_graph(zoo_graph("llama-2-7b"), spec.rule_set)
    row = next(r for r in step_time(spec, program, Sizes.decode(1, 64)).rows if r.kernel == "norm_gate_up_silu_mul")
    size = 2 * 11008 * 4096 * 2
    assert spec.cores is not None
    assert row.memory_s["dram"] == pytest.approx(size / (8 * spec.cores.bytes_per_s), rel=0.01), "344 units for 8"
    assert row.launch_s == pytest.approx(1e-6 + 8 * spec.cores.barrier_s)
    many = load_machine("epyc-9554")
    row = next(r for r in step_time(many, program, Sizes.decode(1, 64)).rows if r.kernel == "norm_gate_up_silu_mul")
    assert row.memory_s["dram"] == pytest.approx(size / (0.67 * 460.8e9), rel=0.01), "64 threads have the memory's rate"


def test_more_threads_are_never_slower_but_for_waiting():
    program = compile_graph(zoo_graph("llama-3.1-8b"), "cache")
    times = []
    for threads in (1, 2, 4, 8, 16, 32, 64):
        spec = load_machine(f"epyc-9554:threads={threads}")
        assert spec.cores is not None
        spec = replace(spec, launch_device_s=1e-6, cores=replace(spec.cores, barrier_s=0.0))
        times.append(
            [step_time(spec, program, sizes).seconds for sizes in (Sizes.decode(1, 64), Sizes.prefill(1, 512))]
        )
    for before, after in pairwise(times):
        assert after[0] <= before[0]
        assert after[1] <= before[1]

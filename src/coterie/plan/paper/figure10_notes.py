"""Explanations of the outliers of Figure 10; all numbers are computed, from published values or our own.

Knows nothing about how the rows are made.
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.graph.cost import program_cost
from coterie.plan.paper.benchmarks import Benchmark, benchmarks, fused, launches, unfused
from coterie.plan.paper.figure10_times import NODE, Shared, Times, times
from coterie.plan.paper.machine import spec
from coterie.plan.paper.published import published as kernel_ratios
from coterie.spec.machine import MachineSpec

Published = Mapping[str, Mapping[str, float]]  # by benchmark, then by mode


def notes(published: Published) -> tuple[str, ...]:
    """One note per outlier."""
    machine, of = spec(NODE), {benchmark.name: benchmark for benchmark in benchmarks()}
    shared = Shared.of_file(machine)
    return (
        _convolution(of["FlashFFTConv"], published["FlashFFTConv"]),
        _launches(of, published, shared),
        _one_computation(of, published, machine, shared),
        f"llava1.5-7B-decode is llama7B-4k-decode with the same shapes, yet "
        f"{published['llava1.5-7B-decode']['HO']:.2f}x is published beside {published['llama7B-4k-decode']['HO']:.2f}x",
        _scores(of, published, shared),
    )


def _convolution(benchmark: Benchmark, values: Mapping[str, float]) -> str:
    sizes, many, few = benchmark.sizes(1), unfused(benchmark), fused(benchmark)
    fewer = program_cost(many, sizes).total_bytes / program_cost(few, sizes).total_bytes
    return (
        f"FlashFFTConv: SO and HO are alike, so its batch is large and launches do not matter; {launches(few)} kernel "
        f"moves {fewer:.0f} times fewer bytes than {launches(many)} do even at batch 1, yet {values['HO']:.2f}x is "
        "published: laid out, it is bound by filling its pipeline at small batches and by its slowest stage at large "
        "ones, never by memory"
    )


def launch_s(at: Times, values: Mapping[str, float], shared: Shared) -> float:
    """Cost of a software launch beyond a hardware one, given our step time and the published ratio of HO to SO."""
    step_s = at.fused_work_s + at.fused_kernels * shared.device_s
    return (values["HO"] / values["SO"] - 1) * step_s / at.fused_kernels


def _launches(of: Mapping[str, Benchmark], published: Published, shared: Shared) -> str:
    llama, mistral = "llama7B-4k-decode", "mistral7B-4k-decode"
    at = {name: times(of[name], 1) for name in (llama, mistral)}
    cost = {name: launch_s(at[name], published[name], shared) * 1e6 for name in at}
    fewer = kernel_ratios("figure-11")[llama].value
    return (
        f"Fused SO of {llama} is slower than unfused ({published[llama]['SO']:.2f}x) although it starts {fewer:.0f} "
        f"times fewer kernels: its {at[llama].fused_kernels} launches must cost some {cost[llama]:.0f} us each, where "
        f"mistral7B's cost some {cost[mistral]:.0f}; one cost a launch cannot give both"
    )


def _one_computation(of: Mapping[str, Benchmark], published: Published, machine: MachineSpec, shared: Shared) -> str:
    names = ("llama7B-4k-prefill", "mistral7B-4k-prefill")
    low, high = (published[name]["HO"] for name in names)
    ours = [times(of[name], 1).speedups(shared)["HO"] for name in names]
    far, near = machine.tier(machine.weight_tiers[1]), machine.tier(machine.run_tier)
    apart, slower = max(high / low, low / high), near.achieved_bytes_per_s / far.achieved_bytes_per_s
    return (
        f"{names[0]} and {names[1]} are nearly the same computation (ours are {abs(ours[1] / ours[0] - 1):.0%} apart), "
        f"yet {low:.1f}x and {high:.1f}x are published: no model without a number for each can be nearer than "
        f"{apart**0.5:.1f}x to both. Unfused intermediates of mistral7B in {far.name}, 1/{slower:.0f} as fast as "
        f"{near.name}, would explain it; so would sections of llama7B that store theirs"
    )


def _scores(of: Mapping[str, Benchmark], published: Published, shared: Shared) -> str:
    names = ("llama70B-4k-prefill", "bloom176B-8k-prefill")
    most = max(published[name]["HO"] for name in names)
    ours = min(times(of[name], 1).speedups(shared)["HO"] for name in names)
    return (
        f"The prefills of llama70B and bloom176B: published at most {most:.2f}x, ours at least {ours:.1f}x: every "
        "score of the attention goes through memory between all of its kernels in ours; theirs must keep most of it on "
        "the chip, or have fused kernels that store it"
    )

"""Decode, prefill and the fusion grid on a GPU, compared with the GPU's limits.

    decode     share of the fastest read loop of HBM      prefill    share of a bfloat16 matrix product's rate
    fusion     unfused/host, fused/host, fused/device; fused/persistent on request

Absolute times matter here, so the GPU's name is part of the workload.
Knows nothing about requests or experts of a composition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from coterie.bench.decode import BATCH, OURS, STEPS, read_rates
from coterie.bench.experts import packed_expert, random_experts
from coterie.bench.fusion import WAYS
from coterie.bench.gpu_peers import add_rows, engines, open_on_gpu, peer_rows, synchronized
from coterie.bench.gpu_peers import notes as peer_notes
from coterie.bench.peers.best import Work
from coterie.bench.peers.peer import Session
from coterie.bench.report import MEASURING_ERROR, SHORT_LIMIT, Effort, Report, Spread, interleave, paired_ratio
from coterie.bench.shapes import shape_config, with_context
from coterie.bench.step import Loaded, Step, prompt_ids
from coterie.bench.subject import Target
from coterie.core.errors import UsageError
from coterie.core.units import format_bytes, format_rate, format_seconds
from coterie.devices.cuda.gpu import Gpu
from coterie.models.model import Model

if TYPE_CHECKING:
    from coterie.devices.cuda.run import Orchestration

# The CPU's ways, and all steps of a run in one persistent launch.
GPU_WAYS: Mapping[str, tuple[str, Orchestration]] = {**WAYS, "fused/persistent": ("cache", "persistent")}
PRODUCT = "product"
WARM_ROUNDS = 3  # the first compiles kernels, the second captures the step as a graph


def decode(target: Target, context_tokens: int, batch: int, effort: Effort, gpu: Gpu) -> Report:
    """Tokens per second at batch 1 and in a batch, compared with HBM's read rate and peers.

    Raises UsageError, CapacityError.
    """
    others, room = engines(target.peers, gpu.torch_device, "decode"), context_tokens + STEPS
    with _random_expert(target, room) as (plain, model), ExitStack() as stack:
        loaded = stack.enter_context(Loaded(model, gpu.make(), room, batch))
        one = loaded.step("cache", context_tokens - 1, 1, steps=STEPS)
        many = loaded.step("cache", context_tokens - 1, 1, batch, STEPS)
        limits = gpu.limits()
        loops = limits.read_loops()
        prompt = prompt_ids(model, context_tokens - 1)
        work = Work(lambda session: session.decode(STEPS), lambda session: session.prefill(prompt))
        opened = open_on_gpu(stack, others, plain, target.weights, room, work)
        for other in opened.open:
            other.session.prefill(prompt)
        ways: dict[str, Callable[[], float]] = {OURS: one.seconds, BATCH: many.seconds} | loops
        ways |= opened.ways(lambda session: _peer_step(session, context_tokens))
        _warm(ways)
        samples = interleave(ways, effort)
        cost, limit_bytes = one.cost(), limits.size_bytes
    limit = min(loops, key=lambda name: median(samples[name]))
    results = read_rates(samples, cost, limit, limit_bytes)
    results["batch"] = {"size": batch, "tokens_per_s": batch / median(samples[BATCH])}
    mbu = Spread.read(results, "mbu")
    results["peers"] = peer_rows(samples, OURS, opened)
    table = Table("way", "per token", "tokens/s", "share of the read rate", "a peer's time over ours")
    per_token = format_seconds(results["seconds_per_token"])
    table.add_row("batch 1", per_token, f"{results['tokens_per_s']:.1f}", str(mbu), "")
    table.add_row(f"batch {batch}", "", f"{batch / median(samples[BATCH]):.1f}", "", "")
    add_rows(table, results["peers"])
    notes = [
        f"a token must read {format_bytes(cost.weight_bytes + cost.kv_read_bytes)}; {STEPS} steps a call, timed from "
        "the call to the tokens in Python",
        f"the limit: {limit} over {format_bytes(limit_bytes)}, {format_rate(results['read_limit']['bytes_per_s'])}",
        *peer_notes(results["peers"]),
        *([SHORT_LIMIT] if mbu.median > MEASURING_ERROR else []),
        *loaded.device.remarks,
    ]
    workload = {"shape": target.shape, "batch": 1, "context": context_tokens, "weights": f"random {target.weights}"}
    workload |= {"gpu": gpu.name, "steps": STEPS}
    return Report("decode", workload, results, (table,), tuple(notes))


def prefill(target: Target, prompt_tokens: int, effort: Effort, gpu: Gpu) -> Report:
    """One prompt's tokens per second, compared with a matrix product's rate and peers.

    Raises UsageError, CapacityError.
    """
    others = engines(target.peers, gpu.torch_device, "prefill")
    with _random_expert(target, prompt_tokens + 1) as (plain, model), ExitStack() as stack:
        loaded = stack.enter_context(Loaded(model, gpu.make(), prompt_tokens))
        step, limits = loaded.step("cache", 0, prompt_tokens), gpu.limits()
        prompt = prompt_ids(model, prompt_tokens)
        work = Work(lambda session: session.prefill(prompt))
        opened = open_on_gpu(stack, others, plain, target.weights, prompt_tokens + 1, work)
        ways: dict[str, Callable[[], float]] = {OURS: step.seconds, PRODUCT: limits.multiply_seconds}
        ways |= opened.ways(lambda session: synchronized(session, work.timed))
        _warm(ways)
        samples = interleave(ways, effort)
        flops, product_flops = step.cost().flops, limits.product_flops
    share = paired_ratio(samples[PRODUCT], samples[OURS]).scaled(flops / product_flops)
    seconds, peak = median(samples[OURS]), product_flops / median(samples[PRODUCT])
    results: dict[str, Any] = {
        **share.plain("share_of_peak"),
        "seconds": seconds,
        "tokens_per_s": prompt_tokens / seconds,
        "flops": flops,
        "flops_per_s": flops / seconds,
        "product_flops_per_s": peak,
        "rounds": len(samples[OURS]),
        "peers": peer_rows(samples, OURS, opened, prompt_tokens),
    }
    table = Table("way", "prompt", "tokens/s", "share of the product's rate", "a peer's time over ours")
    table.add_row("coterie", format_seconds(seconds), f"{prompt_tokens / seconds:.0f}", str(share), "")
    add_rows(table, results["peers"], prompt_tokens)
    limit = f"a product of square bfloat16 matrices: {peak / 1e12:.1f} TFLOP/s"
    notes = (limit, *peer_notes(results["peers"]), *loaded.device.remarks)
    workload = {"shape": target.shape, "prompt_tokens": prompt_tokens, "weights": f"random {target.weights}"}
    workload["gpu"] = gpu.name
    return Report("prefill", workload, results, (table,), notes)


def fusion(shape: str, prompt_tokens: int, effort: Effort, gpu: Gpu, ways: Sequence[str] = ()) -> Report:
    """The grid of fusion and orchestration, for prefill and decode, in some of GPU_WAYS; by default WAYS.

    The persistent kernel, whose blocks wait for each other, may hang a GPU, so it runs only on request. Raises
    UsageError, CapacityError.
    """
    unknown = [way for way in ways if way not in GPU_WAYS]
    if unknown:
        raise UsageError("--way", f"{unknown[0]!r} is no way to run a step", f"use one of {', '.join(GPU_WAYS)}")
    grid = {way: how for way, how in GPU_WAYS.items() if way in (ways or WAYS)}
    config = with_context(shape_config(shape), prompt_tokens + STEPS)
    with random_experts(config, 1) as (model,), ExitStack() as stack:
        loaded = {}
        for how in dict.fromkeys(how for _, how in grid.values()):
            loaded[how] = stack.enter_context(Loaded(model, gpu.make(how), prompt_tokens + STEPS))
        cells = []
        for phase, first, tokens, at_once in (("prefill", 0, prompt_tokens, 1), ("decode", prompt_tokens, 1, STEPS)):
            steps = {way: loaded[how].step(rules, first, tokens, steps=at_once) for way, (rules, how) in grid.items()}
            cells += _cells(phase, steps, effort)
        remarks = tuple(dict.fromkeys(remark for one in loaded.values() for remark in one.device.remarks))
    table = Table("phase", "way", "per step", "speed-up", "regions")
    for cell in cells:
        speedup, seconds = str(Spread.read(cell, "speedup")), format_seconds(cell["seconds_per_step"])
        table.add_row(cell["phase"], cell["way"], seconds, speedup, str(cell["regions"]))
    notes = (
        "prefill is captured as decode steps are, where they are; where those are walked, it is captured",
        f"{STEPS} decode steps a call, as a server makes them: where a way starts several at once, it is seen",
        *remarks,
    )
    weights = f"{format_bytes(model.layout.size_bytes)} of random bf16"
    workload = {"shape": shape, "prefill_tokens": prompt_tokens, "weights": weights, "gpu": gpu.name}
    workload["decode_steps"] = STEPS
    return Report("fusion", workload, {"grid": cells}, (table,), notes)


@contextmanager
def _random_expert(target: Target, room: int) -> Iterator[tuple[Model, Model]]:
    """A random expert with a context of `room` tokens: unquantised, for peers, and with the target's weights."""
    config = with_context(shape_config(target.shape), room)
    with random_experts(config, 1) as (plain,), packed_expert(plain, target.weights) as model:
        yield plain, model


def _peer_step(session: Session, context_tokens: int) -> float:
    """Seconds per step, at the same positions in every round."""
    session.rewind(context_tokens - 1)
    return synchronized(session, lambda one: one.decode(STEPS)) / STEPS


def _cells(phase: str, steps: Mapping[str, Step], effort: Effort) -> list[dict[str, Any]]:
    ways: dict[str, Callable[[], float]] = {way: step.seconds for way, step in steps.items()}
    _warm(ways)
    samples = interleave(ways, effort)
    baseline = samples[next(iter(ways))]
    return [
        {
            "phase": phase,
            "way": way,
            "seconds_per_step": median(samples[way]),
            **paired_ratio(baseline, samples[way]).plain("speedup"),
            "regions": len(step.exe.program.regions),
            "rounds": len(samples[way]),
        }
        for way, step in steps.items()
    ]


def _warm(ways: Mapping[str, Callable[[], float]]) -> None:
    for _ in range(WARM_ROUNDS):
        for run in ways.values():
            run()

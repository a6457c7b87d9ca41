"""`coterie bench`: measures this machine; prints a table for people, then one JSON line.

Knows nothing about how it is measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from coterie.bench import gpu as gpu_bench
from coterie.bench.coe import KNOWN, PEER_SHAPES, POLICIES, SEED, SHAPES, Grid, coe
from coterie.bench.decode import decode
from coterie.bench.fusion import fusion
from coterie.bench.gpu_coe import SHAPE as GPU_COE_SHAPE
from coterie.bench.gpu_coe import Chosen, choose_sizes
from coterie.bench.gpu_switch import switch as gpu_switch
from coterie.bench.neighbour import neighbour
from coterie.bench.prefill import prefill
from coterie.bench.quality import quality
from coterie.bench.report import Effort, show_frame
from coterie.bench.shapes import shape_config
from coterie.bench.speculate import drafted, speculate
from coterie.bench.subject import Target, measured_gpu, own_of
from coterie.bench.switch import switch
from coterie.cli.bench_print import print_line, print_report
from coterie.cli.bench_serve import bench_serve
from coterie.cli.options import (
    ActivationsOpt,
    DeviceOpt,
    JsonOpt,
    LowPriorityOpt,
    NearOpt,
    ThreadsOpt,
    TraceOpt,
    err,
    out,
    report_errors,
    save_trace,
)
from coterie.core.errors import UsageError
from coterie.core.paths import user_path
from coterie.devices.cuda.gpu import Gpu, gpu_number
from coterie.graph.ops import BF16, INT16
from coterie.models.model import AUTO, FLOAT32
from coterie.plan.mix import MIXES
from coterie.spec.machine import MachineSpec

app = typer.Typer(
    invoke_without_command=True, help="Measure this machine; without a command, small versions of everything."
)

ShapeOpt = Annotated[str, typer.Option(help="demo, 135m, 1b, 7b, moe, or the path of a config.json.")]
PeersOpt = Annotated[
    list[str] | None,
    typer.Option("--peer", metavar="NAME", help="llama.cpp, transformers or openvino, side by side; repeatable."),
]
PromptOpt = Annotated[int, typer.Option("--prompt", min=1, metavar="TOKENS", help="Tokens of the prompt.")]
RealOpt = Annotated[str, typer.Option("--device", help="cpu, or cuda: a GPU.")]
WeightsOpt = Annotated[str, typer.Option(help="bf16, int8, int6, int4 or int4z: how the random expert is stored.")]
CheckpointOpt = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="An expert of your own, instead of a random one of --shape.")
]
DraftFolderOpt = Annotated[
    str | None,
    typer.Option("--draft", metavar="FOLDER", help="A smaller expert that drafts for the one of --checkpoint."),
]
GgufOpt = Annotated[str | None, typer.Option(metavar="FILE", help="The GGUF file of --checkpoint, for peers to run.")]
RoundsOpt = Annotated[int, typer.Option(min=1, help="Take at least this many samples.")]
SecondsOpt = Annotated[float, typer.Option(min=0, help="Sample each kind for at least this many seconds.")]

SHAPE, WEIGHTS, PROMPT_TOKENS, CONTEXT_TOKENS, EXPERTS = "demo", "bf16", 128, 64, 3
PREFILL_TOKENS, BATCH = 512, 8
EFFORT = Effort()
IN_FLIGHT, NEAR_BYTES, COE_EXPERTS = (8, 32, 128), 2 * 2**30, 150


@app.callback()
@report_errors
def everything(ctx: typer.Context, json_: JsonOpt = False, threads: ThreadsOpt = None) -> None:
    """Measure fusion, decode, prefill and switch on random experts of the demo's shape."""
    if ctx.invoked_subcommand is not None:
        return
    if not json_:
        show_frame(out)
    reports = [
        fusion(SHAPE, PROMPT_TOKENS, threads, EFFORT),
        decode(Target(SHAPE), CONTEXT_TOKENS, threads, EFFORT),
        prefill(Target(SHAPE), PREFILL_TOKENS, threads, EFFORT),
        switch(Target(SHAPE), PROMPT_TOKENS, EXPERTS, threads, EFFORT)[0],
    ]
    if not json_:
        for report in reports:
            report.show(out)
        out.print("larger: coterie bench fusion --shape 135m, and so with decode and switch")
    print_line({"bench": "all", "runs": [report.to_dict() for report in reports]})


@app.command("fusion")
@report_errors
def bench_fusion(
    shape: ShapeOpt = SHAPE,
    prompt: PromptOpt = PROMPT_TOKENS,
    rounds: RoundsOpt = EFFORT.rounds,
    seconds: SecondsOpt = EFFORT.seconds,
    way: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"GPU only: compare only these of {', '.join(gpu_bench.GPU_WAYS)}; repeatable. Default: all but the "
            "last.",
        ),
    ] = None,
    device: RealOpt = "cpu",
    threads: ThreadsOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Unfused, fused, and fused with device orchestration: time, launches, bytes stored between kernels."""
    gpu = _gpu(device)
    if gpu is not None:
        print_report(gpu_bench.fusion(shape, prompt, Effort(rounds, seconds), gpu, way or ()), json_)
        return
    if way:
        raise UsageError("--way", "the ways of a CPU are always compared", "leave it out, or add --device cuda")
    print_report(fusion(shape, prompt, threads, Effort(rounds, seconds)), json_)


@app.command("decode")
@report_errors
def bench_decode(
    shape: ShapeOpt = SHAPE,
    context: Annotated[
        int, typer.Option(min=2, metavar="TOKENS", help="Context of a step, in tokens.")
    ] = CONTEXT_TOKENS,
    batch: Annotated[int, typer.Option(min=1, help="Batch size to compare batch 1 with.")] = BATCH,
    weights: WeightsOpt = WEIGHTS,
    activations: ActivationsOpt = AUTO,
    peer: PeersOpt = None,
    checkpoint: CheckpointOpt = None,
    gguf: GgufOpt = None,
    rounds: RoundsOpt = EFFORT.rounds,
    seconds: SecondsOpt = EFFORT.seconds,
    device: RealOpt = "cpu",
    threads: ThreadsOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Tokens per second at batch 1 and in a batch, compared with the memory's read rate and with peers."""
    gpu, effort = _gpu(device, activations), Effort(rounds, seconds)
    target = _target(Target(shape, weights, activations, tuple(peer or ())), gpu, checkpoint, gguf)
    if gpu is not None:
        print_report(gpu_bench.decode(target, context, batch, effort, gpu), json_)
        return
    print_report(decode(target, context, threads, effort, batch), json_)


@app.command("speculate")
@report_errors
def bench_speculate(
    shape: ShapeOpt = SHAPE,
    weights: WeightsOpt = WEIGHTS,
    rounds: RoundsOpt = EFFORT.rounds,
    seconds: SecondsOpt = EFFORT.seconds,
    threads: ThreadsOpt = None,
    checkpoint: CheckpointOpt = None,
    draft: DraftFolderOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Tokens per second of one user with and without speculation: synthetic experts that repeat themselves or answer
    in JSON; or --checkpoint with --draft.
    """
    if (checkpoint is None) != (draft is None):
        raise UsageError("--draft", "an expert and its draft are measured together", "give --checkpoint and --draft")
    if checkpoint is not None and draft is not None:
        print_report(drafted(user_path(checkpoint), user_path(draft), threads, Effort(rounds, seconds)), json_)
        return
    print_report(speculate(shape, threads, Effort(rounds, seconds), weights), json_)


@app.command("prefill")
@report_errors
def bench_prefill(
    shape: ShapeOpt = SHAPE,
    prompt: PromptOpt = PREFILL_TOKENS,
    weights: WeightsOpt = WEIGHTS,
    activations: ActivationsOpt = AUTO,
    peer: PeersOpt = None,
    checkpoint: CheckpointOpt = None,
    gguf: GgufOpt = None,
    rounds: RoundsOpt = EFFORT.rounds,
    seconds: SecondsOpt = EFFORT.seconds,
    device: RealOpt = "cpu",
    threads: ThreadsOpt = None,
    json_: JsonOpt = False,
) -> None:
    """One prompt's tokens per second, compared with the cores' multiply-add rate and with peers."""
    gpu, effort = _gpu(device, activations), Effort(rounds, seconds)
    target = _target(Target(shape, weights, activations, tuple(peer or ())), gpu, checkpoint, gguf)
    if gpu is not None:
        print_report(gpu_bench.prefill(target, prompt, effort, gpu), json_)
        return
    print_report(prefill(target, prompt, threads, effort), json_)


@app.command("switch")
@report_errors
def bench_switch(
    shape: ShapeOpt = SHAPE,
    prompt: PromptOpt = PROMPT_TOKENS,
    experts: Annotated[int, typer.Option(min=2, help="How many experts take turns.")] = EXPERTS,
    peer: PeersOpt = None,
    checkpoint: CheckpointOpt = None,
    gguf: GgufOpt = None,
    rounds: RoundsOpt = EFFORT.rounds,
    seconds: SecondsOpt = EFFORT.seconds,
    device: RealOpt = "cpu",
    threads: ThreadsOpt = None,
    trace: TraceOpt = None,
    json_: JsonOpt = False,
) -> None:
    """A cold switch from disk to the first token, and a switch between resident experts."""
    effort, gpu = Effort(rounds, seconds), _gpu(device)
    target = _target(Target(shape, peers=tuple(peer or ())), gpu, checkpoint, gguf)
    if gpu is not None:
        report, recorded = gpu_switch(target, prompt, experts, effort, gpu, trace is not None)
    else:
        report, recorded = switch(target, prompt, experts, threads, effort, trace is not None)
    if trace is not None and recorded is not None:
        save_trace(trace, recorded)
    print_report(report, json_)


@app.command("neighbour")
@report_errors
def bench_neighbour(
    shape: ShapeOpt = "135m",
    rounds: RoundsOpt = EFFORT.rounds,
    threads: ThreadsOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Decode alone, and while another process keeps one of our CPUs busy."""
    print_report(neighbour(shape, CONTEXT_TOKENS, threads, Effort(rounds, 0.0)), json_)


@app.command("quality")
@report_errors
def bench_quality(
    questions: Annotated[int, typer.Option(min=1, help="Questions per demo expert.")] = 10,
    shape: ShapeOpt = SHAPE,
    json_: JsonOpt = False,
) -> None:
    """What packed weights, and int8 and bf16 activations, do to answers, on the demo and on a random model."""
    print_report(quality(questions, shape), json_)


app.command("serve")(bench_serve)


@app.command("coe")
@report_errors
def bench_coe(
    experts: Annotated[
        int | None, typer.Option(min=2, help=f"How many random experts; {COE_EXPERTS}, on a GPU by its host's memory.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests per run.")] = 2000,
    mix: Annotated[list[str] | None, typer.Option(help=f"{', '.join(MIXES)}; may be repeated.")] = None,
    in_flight: Annotated[list[int] | None, typer.Option(min=1, help="Concurrent requests; may be repeated.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help=f"{', '.join(KNOWN)}; may be repeated.")] = None,
    near: NearOpt = None,
    prompt: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Tokens of a prompt.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the mixes.")] = SEED,
    low_priority_share: LowPriorityOpt = 0.0,
    shape: Annotated[str, typer.Option(help="One shape for all, instead of three architectures of 50 to 100 MB.")] = "",
    adapters: Annotated[
        int,
        typer.Option(
            min=0, metavar="RANK", help="Rank of LoRA adapters of one base, used as experts; 0: whole models."
        ),
    ] = 0,
    device: DeviceOpt = "cpu",
    threads: ThreadsOpt = None,
    peer: PeersOpt = None,
    trace: TraceOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Many experts in little memory, by policy. All 18 runs take an hour on two cores; --requests 200: a tenth of it.

    On --device synthetic:MACHINE the same engine serves in modelled time, without weights. With --peer all are Llamas;
    on --device cuda all have the 1b shape, and the output says how many experts and how much HBM were chosen.
    """
    chosen, gpu_index = Chosen(experts or COE_EXPERTS, NEAR_BYTES if near is None else near, ""), gpu_number(device)
    spec: MachineSpec | None = None
    if gpu_index is not None:
        shape, spec = shape or GPU_COE_SHAPE, Gpu(gpu_index).spec()
        at_once = max(in_flight or IN_FLIGHT)
        chosen = choose_sizes(spec, shape_config(shape), at_once, prompt + tokens, experts, near)
    if chosen.why:
        err.print(f"chosen: {chosen.why}", style="dim", markup=False)
    grid = Grid(
        experts=chosen.experts,
        requests=requests,
        mixes=tuple(mix or MIXES),
        in_flight=tuple(in_flight or IN_FLIGHT),
        policies=tuple(policy or POLICIES),
        near_bytes=chosen.near_bytes,
        prompt_tokens=prompt,
        new_tokens=tokens,
        device=device,
        threads=threads,
        shapes=(shape_config(shape),) if shape else PEER_SHAPES if peer else SHAPES,
        peers=tuple(peer or ()),
        seed=seed,
        why=chosen.why,
        spec=spec,
        adapter_rank=adapters,
        low_priority_share=low_priority_share,
    )
    report, recorded = coe(grid, lambda text: err.print(text, style="dim", markup=False))
    if trace is not None and recorded is not None:
        save_trace(trace, recorded)
    print_report(report, json_)


def _gpu(device: str, activations: str = AUTO) -> Gpu | None:
    """Like `measured_gpu`. Also raises UsageError for activations that GPU kernels do not support."""
    gpu = measured_gpu(device)
    if gpu is not None and activations not in (AUTO, FLOAT32, INT16):
        halves = f"the GPU's kernels round to {BF16} in steps of more than four tokens, and in no others"
        fact = halves if activations == BF16 else f"the GPU's kernels round no activations to {activations}"
        raise UsageError("--activations", fact, "leave it out")
    return gpu


def _target(asked: Target, gpu: Gpu | None, checkpoint: str | None, gguf: str | None) -> Target:
    """The target with the user's own checkpoint, if any, which a GPU does not support. Raises UsageError."""
    others = {"--shape": asked.shape != SHAPE, "--weights": asked.weights != WEIGHTS}
    own = own_of(checkpoint, gguf, asked.peers, others)
    if own is not None and gpu is not None:
        raise UsageError(
            "--checkpoint", "a GPU is measured with random experts alone", "leave it out, or --device cuda"
        )
    return replace(asked, own=own)

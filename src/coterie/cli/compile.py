"""`coterie compile`: compiles the kernels that serving a composition on a GPU may launch ahead of time, on all cores.

Knows nothing about kernels, or about how they are determined.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import as_completed
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.opening import open_for_modelling
from coterie.cli.options import CompositionArg, JsonOpt, err, out, print_json, report_errors
from coterie.cli.progress import counted
from coterie.core.errors import DeviceError, UnsupportedError, UsageError
from coterie.device import Limits
from coterie.devices.cuda.gpu import ahead_of, gpu_number
from coterie.engine.assembly import Settings, expected_steps, plan
from coterie.engine.policy import Policy
from coterie.engine.vectors import without_head
from coterie.models.model import Model

if TYPE_CHECKING:
    from coterie.devices.cuda.dry_run import DryRun, Wanted
    from coterie.graph.program import Program

POLICY = Policy()


@report_errors
def compile_(
    composition: CompositionArg,
    device: Annotated[str, typer.Option(help="The GPU to compile for: cuda, or cuda:NUMBER.")] = "cuda",
    capability: Annotated[
        str,
        typer.Option(
            metavar="MAJOR.MINOR", help="Compute capability of a GPU that this machine may lack, e.g. 9.0 for an H100."
        ),
    ] = "",
    multiprocessors: Annotated[
        int | None, typer.Option(min=1, help="Multiprocessors of that GPU, if not 132: tile sizes depend on it.")
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Maximum sequences in a step.")] = POLICY.max_batch,
    tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens in a step.")] = POLICY.max_step_tokens,
    context: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="The longest context; default: that of each expert.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    json_: JsonOpt = False,
) -> None:
    """Compile a GPU's kernels before it serves a composition, on a machine with or without a GPU."""
    if gpu_number(device) is None:
        raise UsageError("--device", f"{device!r} is no GPU", "use cuda or cuda:NUMBER")
    start_s = perf_counter()
    ahead = ahead_of(device, capability, multiprocessors)
    wanted = _wanted(open_for_modelling(composition)[1], ahead, sequences, tokens, context)
    kept = ahead.kept(wanted)
    missing = [one for one, is_there in kept.items() if not is_there]
    used, failed = _compile(missing, ahead, processes)
    folder, (major, minor) = ahead.folder, ahead.capability
    if json_:
        found = {"kernels": len(kept), "there": len(kept) - len(missing), "failed": failed, "processes": used}
        print_json(found | {"capability": f"{major}.{minor}", "seconds": perf_counter() - start_s, "folder": folder})
    else:
        compiled = f"{len(missing) - len(failed)} compiled in {used} processes, " if missing else ""
        there = f"{len(kept) - len(missing)} were there already, {perf_counter() - start_s:.1f} s"
        out.print(
            f"{len(kept)} kernels for a GPU of capability {major}.{minor}: {compiled}{there}; in {folder}",
            markup=False,
        )
    if failed:
        fact = f"{len(failed)} of {len(kept)} kernels do not compile: {failed[0]}"
        raise DeviceError("coterie compile", fact, "serving compiles them again and says more; the others are there")


def _wanted(
    models: dict[str, Model], ahead: DryRun, sequences: int, tokens: int, context: int | None
) -> dict[Wanted, None]:
    """The distinct kernels of all architectures."""
    policy = Policy(max_batch=sequences, max_step_tokens=tokens)
    made = plan(models, ahead.spec(), Settings(policy=policy))
    asked = expected_steps(models, made.programs, made.base_of, policy)
    wanted = ahead.always()
    with counted("what is launched", len(asked)) as tell:
        for number, one in enumerate(asked, 1):
            most = one.limits.context if context is None else min(context, one.limits.context)
            limits = Limits(one.limits.sequences, one.limits.tokens, most)
            for program in _programs(made.programs[one.key], one.shared is None):
                wanted |= ahead.everything(ahead.load(program), limits, made.block_bytes, one.shared)
            if tell is not None:
                tell(number)
    return wanted


def _programs(program: Program, alone: bool) -> Iterator[Program]:
    """The programs served for an architecture: its own and, if steps are for one expert (`alone`), for embeddings."""
    yield program
    if alone and program.samples_tokens:
        with suppress(UnsupportedError):  # without a norm before its head it cannot give embeddings
            yield without_head(program)


def _compile(missing: list[Wanted], ahead: DryRun, processes: int | None) -> tuple[int, list[str]]:
    """Compile these; returns the number of processes, and messages about failures."""
    if not missing:
        return 0, []
    compilers = ahead.compilers(processes)
    try:
        asked = compilers.ask(missing)
        with counted("kernels", len(asked)) as tell:
            if tell is None:
                err.print(f"compiling {len(asked)} kernels in {compilers.processes} processes", markup=False)
            for done, _ in enumerate(as_completed(asked), 1):
                if tell is not None:
                    tell(done)
        return compilers.processes, [answer for future in asked if isinstance(answer := future.result(), str)]
    finally:
        compilers.close()

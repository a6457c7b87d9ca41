"""Runs the validation on all data sets. Knows nothing about how the rows are printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from coterie.core.grouped import grouped
from coterie.plan.validate.called import called_bytes_per_s
from coterie.plan.validate.carry import carry_rows
from coterie.plan.validate.cpu import Shapes, cpu_rows, of_checkpoint, of_gpu, read_results
from coterie.plan.validate.gpu_kernels import gpu_kernel_rows
from coterie.plan.validate.gpu_own import gpu_rows
from coterie.plan.validate.gpu_serving import nemo_rows, splitwise_rows
from coterie.plan.validate.published import published_rows
from coterie.plan.validate.rows import GPU_KERNEL, VALIDATION, Dropped, Outcome, Row, summary
from coterie.spec.measured import kernels_of, measured_devices

CAVEATS = (
    "AIConfigurator: two versions of one engine on one GPU differ by up to 9 % in a cell: 5 % is the floor.",
    "AIConfigurator, decode attention: its collector gives keys and values one memory (CacheType.SELFKONLY; issue 1379 "
    "of that project). Kernels of grouped heads read both at once, so their rows count that memory once; those of one "
    "query head a kv head, timed at 0.93 of the peak for both, twice. Programs are priced with both.",
    "Vidur's A100 all-reduce file contradicts itself (4 GPUs: 8.83 ms for 66.8 MB) and is left out.",
    "LLMCompass: QK, AV and softmax of unfused attention are no kernels of ours and are left out.",
    "SplitwiseSim: the h100-pcap rows are a multiple of others, and 2 GPUs at batch 64 are bogus; both are left out.",
    "SplitwiseSim: a token on 8 GPUs takes some six times what HBM needs: software of 2023 bounds it, not the machine.",
    "SplitwiseSim: four times the tokens, 2048 to 8192, take 4.3 times as long on 2 GPUs, 4.7 and 5.7 on 4, 5.7 and "
    "6.2 on 8: what steps of 8192 tokens and more lose there is neither in kernels nor in measured exchanges.",
    "SplitwiseSim: a token above 2048 tokens costs 1.1 to 1.3 on 2 GPUs, 1.4 to 1.6 on 4 and 1.6 to 2.1 on 8 times one "
    "below; there five runs of one row differ by up to 32 % on 4 and 8 GPUs, by up to 4 % on 2. It is as if exchanges "
    "ran at a quarter of the speed that NCCL has alone: fitted to BLOOM-176B, predicted for Llama-2; why is not known. "
    "BLOOM-176B, on 8 GPUs alone, says how much and from where on; the form is not blind to Llama-2: on 2 GPUs it "
    "loses little, which says that it is not kernels.",
    "SplitwiseSim: a token's software is fitted to Llama-2-70B; tokens of BLOOM-176B come out 6 to 19 % too short.",
    "LLMCompass: operators are timed from the host, a call and its end (software_model); to kernels its own published "
    "times of a call are added, 21 us for a gemm and 45 us for a norm or GELU; q, k and v are three calls.",
    "NeMo: 13B is faster than 7B and below what 16-bit weights need: quantised or mislabelled, so dropped.",
    "Published, by machine: figures of llama.cpp, Ollama, MLC, vLLM and NIM, whose packed types and kernels are not "
    "ours; of several the fastest. Fitted: Strix Halo's share of arithmetic, to the one row that calibrates, and a Mac "
    "Studio's share of bandwidth, to a figure of another model. `carried over`: what kernels of other machines reach, "
    "with this one's peaks; `0.7 and 0.8 of the peaks`: the same rows by the rule before. No software is in them.",
    "Carried over, GPU kernels: each GPU's are predicted from the other architectures alone (Ampere; Hopper; Ada; "
    "Blackwell; Blackwell of workstations).",
    "Published, dgx-spark: prompts take 2.8 times as long as here, where products reach the 92 TFLOP/s that PyTorch's "
    "do. llama.cpp multiplies whole numbers there; no other software is in these rows.",
    "Errors of calibration rows say how well the model fits, not how well it predicts.",
)

NO_CPU_RESULTS = ("this CPU: no results were given, so nothing is said about it",)
UNKNOWN_SHAPE = "its result has a checkpoint's name and not its shape, so there is no model of it"


def validate(results: Path | None, shapes: Shapes) -> Outcome:
    """Model every row.

    `results`: folder of benchmark results of this machine or its GPU, or None; `shapes`: config by name.
    Raises UsageError for a folder without the results needed for calibration.
    """
    own = _Own() if results is None else _own(results, shapes)  # first: it may be refused
    rows = [item for item in _public() if isinstance(item, Row)] + own.rows
    dropped = (*(item for item in _public() if isinstance(item, Dropped)), *own.dropped)
    return Outcome(tuple(rows), dropped, (*CAVEATS, by_gpu(rows), *_fitted(), *own.caveats))


@dataclass(frozen=True, slots=True)
class _Own:
    """What the benches of one machine give."""

    rows: list[Row] = field(default_factory=list)
    dropped: tuple[Dropped, ...] = ()
    caveats: tuple[str, ...] = NO_CPU_RESULTS


def _own(results: Path, shapes: Shapes) -> _Own:
    found = read_results(results)
    unknown = {name for name, raw in found.items() if of_checkpoint(raw)}
    dropped = tuple(Dropped("own checkpoint", name, UNKNOWN_SHAPE) for name in sorted(unknown))
    gpus = {name: raw for name, raw in found.items() if of_gpu(raw)}
    rows, on_gpu = gpu_rows({name: raw for name, raw in gpus.items() if name not in unknown}, results, shapes)
    if found and len(gpus) == len(found):
        return _Own(rows, dropped, (*NO_CPU_RESULTS, *on_gpu))
    on_cpu, caveats = cpu_rows(results, shapes)
    return _Own([*rows, *on_cpu], dropped, (*caveats, *on_gpu))


def by_gpu(rows: Sequence[Row]) -> str:
    """The errors of held-out kernels and exchanges of each GPU, in words: mean, median and number of rows."""
    tables = [row for row in rows if row.metric == GPU_KERNEL and row.split == VALIDATION]
    tables = [row for row in tables if row.dataset.startswith("AIConfigurator")]
    found = {device: summary(device, mine) for device, mine in grouped((r.name.split()[0], r) for r in tables).items()}
    each = (f"{device} {of.mean:.1%} (median {of.median:.1%}, {of.n} rows)" for device, of in found.items())
    return f"AIConfigurator, held out, by GPU: {'; '.join(each)}."


def _fitted() -> Iterator[str]:
    """The constants that were fitted to measured kernels, in words."""
    yield (
        "fitted, a100: element-wise operators called by LLMCompass move bytes at "
        f"{called_bytes_per_s('a100') * 1e-12:.2f} TB/s above their call's 45 us"
    )
    for device in measured_devices():
        for variant, blocks in kernels_of(device).blocks.items():
            yield (
                f"fitted, {device}: decode attention of {variant} query heads a kv head takes "
                f"{blocks.fixed_s * 1e6:.1f} us, {blocks.start_s * 1e6:.1f} us a wave of thread blocks, and "
                f"its bytes at {blocks.share:.2f} of the peak"
            )


@cache
def _public() -> tuple[Row | Dropped, ...]:
    return (*gpu_kernel_rows(), *splitwise_rows(), *nemo_rows(), *carry_rows(), *published_rows())

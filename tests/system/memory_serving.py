"""A process that serves several small experts within a budget and says how much memory it took; a part of test_memory.

Knows nothing about what is allowed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from coterie.api.assemble import Options, make_device, make_spec
from coterie.devices.cpu.device import CpuDevice
from coterie.engine.assembly import plan, wire
from coterie.engine.request import Request
from coterie.models.model import open_model

ROUNDS, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 2, 6, 300, 4


def status_bytes(key: str) -> int:
    """A line of this process's status. Source: proc_pid_status(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def main(folder: str, residents: int, extra_bytes: int) -> None:
    """Every expert of the folder in turn, in full steps; `extra_bytes` are taken beside, as a leak would."""
    models = {path.name: open_model(path) for path in sorted(Path(folder).iterdir())}
    options = Options(near_bytes=residents * max(model.layout.size_bytes for model in models.values()))
    before = status_bytes("VmRSS")
    spec = make_spec(options)
    made = plan(models, spec, options)
    device = make_device(spec, options)
    assert isinstance(device, CpuDevice)
    parts = wire(models, made, options, device)
    leak = np.ones(extra_bytes, np.uint8)
    rng = np.random.default_rng(0)
    for number in range(ROUNDS * len(models) * PROMPTS):
        name, model = list(models.items())[number // PROMPTS % len(models)]
        ids = tuple(rng.integers(0, model.config.vocab_size, PROMPT_TOKENS).tolist())
        parts.engine.submit(Request(f"r{number}", name, ids, NEW_TOKENS, ignore_end=True))
    while not parts.engine.idle:
        for output in parts.engine.step():
            if output.error is not None:
                raise output.error
    said = {
        "before_bytes": before,
        "peak_bytes": status_bytes("VmHWM"),
        "budget_bytes": made.near_bytes + made.kv_bytes + made.work_bytes,
        "experts_bytes": made.total_bytes,
        "workspace_bytes": device.workspace_bytes,
        "work_bytes": made.work_bytes,
        "switches": parts.engine.metrics.switches,
        "leak_bytes": leak.nbytes,
    }
    device.close()
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

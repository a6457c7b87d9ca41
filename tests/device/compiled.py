"""The GPU's kernels compiled for an H100, on a machine without one: registers, spills and the instructions that matter.

    python -m tests.device.compiled            all kernels; writes their table in docs/triton_tables.md
    python -m tests.device.compiled all Q4     all of them for one type of weights; a line of JSON for each
    python -m tests.device.compiled linear     some of them
    python -m tests.device.compiled wide       some of them with other sizes or operands, or in other steps (SOME)
    python -m tests.device.compiled walk       the kernel that walks all rows, for each type; writes its own table

COMPILE_FOR=86 in the environment names another capability.
Run as a program of its own: a process that interprets kernels cannot compile them.
Knows nothing about what kernels compute.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import numpy as np
import torch
import triton
from tests.device.compiled_ptx import CAPABILITY, HEAD, WALK_HEAD, measure
from tests.device.compiled_rows import BATCHES, PACKED_KINDS, PROGRAMS, SOME, STEPS, program_of, rows_of, take
from tests.device.triton_table import DOCS, put
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton import launch as gpu
from coterie.kernels.triton.feed import feed_launch
from coterie.kernels.triton.launch import H100
from coterie.kernels.triton.persistent import plan_of
from coterie.kernels.triton.tiles import tiles_for

WALK_STEPS = ("decode 1", "decode 4")
TILES = tiles_for(divmod(CAPABILITY, 10), H100.multiprocessors)


class NoGpu:
    """Stands for the driver: names the GPU to compile for, and launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_all(names, dtypes, steps):
    """Launch rows with a driver that compiles and does not run."""
    found, run, buckets = {}, JITFunction.run, STEPS | BATCHES
    triton.runtime.driver.set_active(NoGpu())

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.setdefault((f"{name}: {self.fn.__name__.strip('_')}", dtype.value, step), compiled)
        return compiled if warmup else None  # as if interpreted: there is nothing to launch again

    JITFunction.run = compile_only
    for dtype in dtypes:
        for name, row in rows_of(dtype).items():
            for step in steps if not names or name in names else ():
                scratch = torch.zeros(gpu.scratch_bytes(row, buckets[step], TILES), dtype=torch.uint8)
                gpu.launch(row, torch.from_numpy(row.copy()), 0, buckets[step], scratch, TILES)
    if not names or "feed" in names:
        name, dtype, step = "feed", DType.F32, "decode 1"
        words, state = torch.zeros(len(kernels.FEED), dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
        feed_launch(
            words, state, torch.zeros(kernels.ROW_WORDS, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        )()
    for dtype in dtypes if "walk" in names else ():
        for step in (step for step in steps if step in WALK_STEPS):
            name = "walk"
            walk_all(program_of(dtype), STEPS[step])
    for name in [name for name in PROGRAMS if name in names]:
        for step in WALK_STEPS[:1] if name == "walk behind" else WALK_STEPS:
            dtype = DType.BF16
            walk_all(PROGRAMS[name](), STEPS[step])
    if "meet" in names:  # the walk of one row, which takes less time
        name, dtype, step = "meet", DType.BF16, "decode 1"
        row = rows_of(dtype)["linear"]
        if walk_all(row, STEPS[step]) is not walk_all(np.tile(row, (16, 1)), STEPS[step]):
            sys.exit("how many phases there are is compiled in")
    return [measure(*key, compiled) for key, compiled in found.items()]


def walk_all(rows, bucket):
    """What walks these rows, compiled."""
    scratch = torch.zeros(max(gpu.scratch_bytes(rows, bucket), 16), dtype=torch.uint8)
    plan = plan_of(rows, torch.from_numpy(rows.copy()), bucket, scratch, H100.for_walk())
    feed, state = torch.zeros(len(kernels.FEED), dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
    stops = torch.zeros(2, dtype=torch.int64)
    return plan.walk(torch.from_numpy(plan.words), feed, state, stops, 1).compile()


def main():
    """Compile what the arguments name, or everything and write the table."""
    names, types = sys.argv[1:], (DType.BF16, DType.F16, *PACKED_KINDS, DType.F32)
    name = names[0] if names else ""
    if name == "all":
        found = compile_all((), [DType[names[1]]], tuple(STEPS))
    elif names == ["walk"]:
        found = compile_all(names, types, WALK_STEPS)
        put(DOCS, "walk", WALK_HEAD, [one.walk_row for one in found])
    elif name == "walk":
        found = compile_all(names[:1], [DType[names[1]]], WALK_STEPS)
    elif name in SOME:
        some = SOME[name]
        take(some)
        found = compile_all(some.names, some.dtypes, some.steps)
    elif names:
        found = compile_all(names, types[:1], ("decode 1", "prefill 2048"))
    else:
        found = compile_all((), types, tuple(STEPS))
        put(DOCS, "compiled", HEAD, [one.row for one in found if one.is_shown])
    for one in found:
        print(json.dumps(asdict(one)))


if __name__ == "__main__":
    main()

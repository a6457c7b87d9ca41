"""What Triton is told to start when a launch is called again: the same as the first time, without the way to it.

    python -m tests.device.launched        a line of JSON for each launch, with the host's microseconds of either way

Run as a program of its own: a process that interprets kernels cannot compile them.
Knows nothing about what kernels compute.
"""

from __future__ import annotations

import gc
import json
from time import perf_counter
from typing import ClassVar

import torch
import triton
from tests.device.compiled import NoGpu
from tests.device.compiled_rows import STEPS, rows_of
from triton.runtime._allocation import _allocator

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton import launch as gpu
from coterie.kernels.triton.feed import feed_launch
from coterie.kernels.triton.persistent import plan_of
from coterie.kernels.triton.product.descriptor_memory import DescriptorMemory
from coterie.kernels.triton.rows import Launch
from coterie.kernels.triton.tiles import H100
from coterie.kernels.triton.words import Mover

TIMES = 200


class Started:
    """Stands for what CUDA is asked to start, and remembers it."""

    calls: ClassVar[list] = []

    def __init__(self, src, metadata):
        self.is_cooperative, self.memory_bytes = metadata.launch_cooperative_grid, metadata.global_scratch_size

    def __call__(self, *given):
        memory = None
        if self.memory_bytes:  # as Triton's own launcher asks for it: for all programs
            memory = _allocator.get()(given[0] * self.memory_bytes, 128, given[3]).data_ptr()
        self.calls.append((self.is_cooperative, *given, memory))


class Utils:
    def load_binary(self, name, kernel, shared, device):
        return object(), f"function {name}", 32, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 227 * 1024, "max_num_regs": 65536}


class LoadsAll(NoGpu):
    """A driver that loads all kernels and starts none."""

    launcher_cls, utils = Started, Utils()


def plain(given):
    """In words; what Triton tells hooks of each launch anew is left out."""
    return [repr(one) for one in given if type(one).__name__ != "LazyDict"]


def seconds(call):
    gc.disable()  # a collection takes as long as a hundred calls
    start = perf_counter()
    for _ in range(TIMES):
        call()
    took = perf_counter() - start
    gc.enable()
    return took / TIMES


def main():
    """Launch rows of a step, and what ends it, twice."""
    triton.runtime.driver.set_active(LoadsAll())
    rows, bucket, found = rows_of(DType.BF16), STEPS["decode 1"], {}
    for name in ("embed", "linear_add", "norm_qkv_rope_append", "attention"):
        scratch = torch.zeros(max(gpu.scratch_bytes(rows[name], bucket), 16), dtype=torch.uint8)
        words = torch.from_numpy(rows[name].copy())
        for number, launch in enumerate(gpu.launches(rows[name], words, 0, bucket, scratch)):
            found[f"{name} {number}"] = launch
    descriptors, many = DescriptorMemory(), STEPS["prefill 2048"]
    for name in ("linear_add", "norm_gate_up_silu_mul", "norm_qkv_rope_append"):
        scratch = torch.zeros(gpu.scratch_bytes(rows[name], many), dtype=torch.uint8)
        words = torch.from_numpy(rows[name].copy())
        *_, found[f"described {name}"] = gpu.launches(rows[name], words, 0, many, scratch, H100, descriptors)
    feed, state = torch.zeros(len(kernels.FEED), dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
    stops = torch.zeros(2, dtype=torch.int64)
    found["feed"] = feed_launch(feed, state, torch.zeros(kernels.ROW_WORDS, dtype=torch.int64), stops)
    one = rows["take_rows"]
    plan = plan_of(one, torch.from_numpy(one.copy()), bucket, torch.zeros(16, dtype=torch.uint8), H100.for_walk())
    found["walk"] = plan.walk(torch.from_numpy(plan.words), feed, state, stops, 3)
    mover, word = Mover(), torch.zeros(64, dtype=torch.uint8)
    found["words"] = lambda: mover.move([(word[:32], word[32:])])
    found["pieces"] = lambda: mover.gather(word[:48])
    for name, launch in found.items():
        Started.calls.clear()
        launch()
        launch()
        first, second = Started.calls
        line = {"launch": name, "equal": plain(first) == plain(second), "cooperative": first[0]}
        line |= {"grid": first[1:4], "given": len(first), "memory": first[-1], "again_us": 1e6 * seconds(launch)}
        if isinstance(launch, Launch):
            jit = launch.kernel[launch.grid]
            line["first_us"] = 1e6 * seconds(lambda jit=jit, one=launch: jit(*one.args, **one.constants))
        print(json.dumps(line))


if __name__ == "__main__":
    main()

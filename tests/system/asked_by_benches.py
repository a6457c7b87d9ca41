"""What the benches of a first session launch, beside what is compiled before them: python -m ... CONFIG COMMAND...

Each COMMAND is words of `coterie`, in one argument, or `ways` and words of benchmarks.gpu_ways. They run on a GPU that
is none, by the CPU's kernels, beside which Triton's are found and not launched. Prints a JSON object of Triton's keys:
`asked`, and `ahead`.

Run as a program of its own: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import redirect_stdout

import torch
from benchmarks import gpu_ways
from benchmarks.gpu_kernels import wanted
from tests.device.lazy_gpu import LazyDriver
from tests.system.asked import CAPABILITY, MULTIPROCESSORS, Both

from coterie.cli.main import app
from coterie.devices.cuda import device as cuda
from coterie.devices.cuda import gpu, kernels
from coterie.devices.cuda import limits as cuda_limits
from coterie.kernels.triton import compile_ahead

BYTES = 1 << 16  # of limits: the lazy GPU is this machine's processor


def main():
    """Run the commands one after the other."""
    config, *commands = sys.argv[1:]
    made = []
    maker = gpu.ahead_of("cuda", "9.0", MULTIPROCESSORS)
    keys = {"ahead": sorted({one.key(CAPABILITY) for one in wanted(maker, config)})}
    driver = LazyDriver(total_bytes=2**32, settle_s=2e-4)
    gpu.open_driver = lambda index=0: driver
    cuda.TritonKernels = kernels.TritonKernels = lambda tiles: made.append(Both(tiles)) or made[-1]
    gpu.LIMIT_BYTES = BYTES
    cuda_limits.read_loop.read = lambda words, sums, *_: torch.sum(words, dim=0, dtype=torch.int32, out=sums[0])
    cuda_limits.MachineLimits.__init__.__defaults__ = (BYTES, 32)
    gpu.Gpu.limits.__defaults__ = (BYTES,)
    with redirect_stdout(sys.stderr):
        for command in commands:
            first, *words = shlex.split(command)
            if first == "ways":
                gpu_ways.main(words)
            else:
                app([first, *words], standalone_mode=False)
    launched = compile_ahead.wanted_by(launch for one in made for launch in one.launches)
    named = {one.key(CAPABILITY): f"{one.name} {dict(one.constants)}" for one in launched}
    print(
        json.dumps(
            {**keys, "asked": sorted(named), "missed": [named[key] for key in named if key not in keys["ahead"]]}
        )
    )


if __name__ == "__main__":
    main()

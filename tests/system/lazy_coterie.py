"""The command line on a GPU that is none, in a process of its own: python -m tests.system.lazy_coterie bench ...

Knows nothing about what is run.
"""

from __future__ import annotations

import torch
from tests.device.lazy_gpu import LazyDriver, NativeKernels

from coterie.cli.main import main
from coterie.devices.cuda import device as cuda
from coterie.devices.cuda import gpu
from coterie.devices.cuda import sticks as cuda_sticks

BYTES = 1 << 16  # of sticks: the lazy GPU is this machine's processor

if __name__ == "__main__":
    driver = LazyDriver(total_bytes=2**30, settle_s=2e-4)
    gpu.open_driver = lambda index=0: driver
    cuda.TritonKernels = lambda tiles: NativeKernels()
    gpu.STICK_BYTES = BYTES
    # The stick that is a kernel of ours is compiled for a GPU only: a session's commands do not interpret.
    cuda_sticks.stick.read = lambda words, sums, *_: torch.sum(words, dim=0, dtype=torch.int32, out=sums[0])
    cuda_sticks.Sticks.__init__.__defaults__ = (BYTES, 32)
    gpu.Gpu.sticks.__defaults__ = (BYTES,)
    main()

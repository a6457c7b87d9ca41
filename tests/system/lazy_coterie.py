"""The command line on a GPU that is none, in a process of its own: python -m tests.system.lazy_coterie bench ...

Knows nothing about what is run.
"""

from __future__ import annotations

import shutil
import tempfile

import torch
from tests.device.lazy_gpu import LazyDriver
from tests.device.native_kernels import NativeKernels

from coterie.bench import gpu_coe
from coterie.cli.main import main
from coterie.devices.cuda import device as cuda
from coterie.devices.cuda import gpu
from coterie.devices.cuda import limits as cuda_limits

BYTES = 1 << 16  # of limits: the lazy GPU is this machine's processor
DISK_BYTES = 1 << 20  # of the temporary folder, for as many experts as it holds

if __name__ == "__main__":
    driver = LazyDriver(total_bytes=2**30, settle_s=2e-4)
    gpu.open_driver = lambda index=0: driver
    cuda.TritonKernels = lambda tiles: NativeKernels()
    gpu.LIMIT_BYTES = BYTES
    gpu_coe.FOLDER_SHARE = DISK_BYTES / shutil.disk_usage(tempfile.gettempdir()).free
    # The limit that is a kernel of ours is compiled for a GPU only: a session's commands do not interpret.
    cuda_limits.read_loop.read = lambda words, sums, *_: torch.sum(words, dim=0, dtype=torch.int32, out=sums[0])
    cuda_limits.MachineLimits.__init__.__defaults__ = (BYTES, 32)
    gpu.Gpu.limits.__defaults__ = (BYTES,)
    main()

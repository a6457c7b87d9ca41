"""Opens the GPU of `--device cuda`, or says in one sentence what is missing.

PyTorch and Triton are imported only when a GPU is asked for: the base install has neither.
Knows nothing about compositions or what is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from coterie.core.errors import UsageError, install_extra
from coterie.core.units import format_bytes
from coterie.spec.machine import MachineSpec

if TYPE_CHECKING:
    from coterie.devices.cuda.device import CudaDevice
    from coterie.devices.cuda.driver import Driver
    from coterie.devices.cuda.dry_run import DryRun
    from coterie.devices.cuda.limits import MachineLimits
    from coterie.devices.cuda.run import Orchestration

PREFIX = "cuda"
LIMIT_BYTES = 2**30  # far more than a GPU's caches hold


class Gpu:
    """An existing GPU. Raises UsageError without PyTorch, without its CUDA build, or if there is no such GPU."""

    def __init__(self, index: int = 0) -> None:
        self._driver = open_driver(index)

    @property
    def name(self) -> str:
        """The GPU, and the software that drives it."""
        return f"{self._driver.facts.name} ({self._driver.facts.software})"

    @property
    def line(self) -> str:
        """A description in one line."""
        facts, (major, minor) = self._driver.facts, self._driver.facts.capability
        room = f"{format_bytes(self._driver.free_bytes())} free of {format_bytes(facts.total_bytes)}"
        return f"{self.name}, {facts.multiprocessors} multiprocessors of capability {major}.{minor}, {room}"

    @property
    def torch_device(self) -> str:
        """torch's name for it: other engines are told to compute there too."""
        return str(self._driver.device_memory(1).device)

    def spec(self) -> MachineSpec:
        """The spec of the GPU and its host, with what is free now."""
        from coterie.devices.cuda.machine import gpu_machine

        return gpu_machine(self._driver)

    def make(self, orchestration: Orchestration = "device", spec: MachineSpec | None = None) -> CudaDevice:
        """The CUDA device on this GPU. Raises UsageError without Triton."""
        from coterie.devices.cuda.device import CudaDevice

        return CudaDevice(spec, orchestration, self._driver)

    def make_with(self, changes: Mapping[str, Any]) -> CudaDevice:
        """The CUDA device on this GPU, with other tiles: `changes` are fields of Tiles."""
        from coterie.devices.cuda.device import CudaDevice
        from coterie.devices.cuda.kernels import kernels_with

        return CudaDevice(driver=self._driver, kernels=kernels_with(self._driver.facts, changes))

    def limits(self, size_bytes: int = LIMIT_BYTES) -> MachineLimits:
        """Its limits, to be measured. Raises CapacityError."""
        from coterie.devices.cuda.limits import MachineLimits

        return MachineLimits(self._driver, size_bytes)


def ahead_of(device: str, capability: str, multiprocessors: int | None) -> DryRun:
    """A dry run for a GPU of this capability, such as 9.0; an empty one means the GPU present, number `device`.

    `multiprocessors` defaults to those of the GPU present, or to an H100's if a capability is given. Raises UsageError
    without PyTorch or Triton, for a capability that is malformed or too old, and if none is given and there is no GPU.
    """
    for package, name in (("torch", "PyTorch"), ("triton", "Triton")):
        if find_spec(package) is None:
            raise UsageError("coterie compile", f"{name} is not installed", install_extra("cuda"))
    from coterie.devices.cuda.driver import check_capability
    from coterie.devices.cuda.dry_run import DryRun

    if capability:
        major, dot, minor = capability.partition(".")
        if not (dot and major.isdecimal() and minor.isdecimal()):
            raise UsageError("--capability", f"{capability!r} is no capability of a GPU", "give one as 9.0, an H100's")
        check_capability("--capability", (int(major), int(minor)))
        return DryRun((int(major), int(minor)), multiprocessors)
    try:
        facts = open_driver(gpu_number(device) or 0).facts
    except UsageError as error:
        raise UsageError("coterie compile", error.fact, "say for which GPU: --capability 9.0 is an H100's") from error
    return DryRun(facts.capability, multiprocessors or facts.multiprocessors)


def gpu_number(device: str) -> int | None:
    """0 for `cuda`, NUMBER for `cuda:NUMBER`, None for other names."""
    kind, colon, number = device.partition(":")
    if kind != PREFIX or (colon and not number.isdecimal()):
        return None
    return int(number or 0)


def describe_gpu() -> str:
    """One line: the GPU that `--device cuda` would use, or why there is none."""
    try:
        return Gpu().line
    except UsageError as error:
        return f"none for --device cuda: {error.fact}"


def open_driver(index: int = 0) -> Driver:
    """GPU number `index` by torch.cuda. Raises UsageError as Gpu."""
    try:  # the installed packages answer at once; importing PyTorch takes seconds
        found = version("torch")
    except PackageNotFoundError as error:
        remedy = f"{install_extra('cuda')}, or use --device cpu"
        raise UsageError("--device cuda", "PyTorch is not installed", remedy) from error
    if found.endswith("+cpu"):
        fact = f"this PyTorch ({found}) was built without CUDA"
        raise UsageError("--device cuda", fact, "install PyTorch's CUDA build, or use --device cpu")
    from coterie.devices.cuda.torch_driver import TorchDriver

    return TorchDriver(index)

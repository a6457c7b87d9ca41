"""The way to a GPU: the driver behind `--device cuda`, or one sentence about what is missing.

PyTorch is imported when a GPU is asked for, and only then: the base install has none. Knows nothing about compositions.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from coterie.core.errors import UsageError
from coterie.core.units import format_bytes
from coterie.device import Device
from coterie.spec.machine import MachineSpec

if TYPE_CHECKING:
    from coterie.devices.cuda_driver import Driver
    from coterie.devices.cuda_run import Orchestration


def open_driver(index: int = 0) -> Driver:
    """GPU number `index`. Raises UsageError without PyTorch, without its CUDA build, or without such a GPU."""
    _check_torch()
    from coterie.devices.cuda_torch import TorchDriver  # noqa: PLC0415 - the extra cuda

    return TorchDriver(index)


def gpu_spec(index: int = 0) -> MachineSpec:
    """The machine that a GPU and its host are. Raises UsageError as open_driver."""
    driver = open_driver(index)
    from coterie.devices.cuda_machine import gpu_machine  # noqa: PLC0415 - the extra cuda

    return gpu_machine(driver)


def make_gpu(spec: MachineSpec | None = None, index: int = 0, orchestration: Orchestration = "device") -> Device:
    """The CUDA device, by default with what is free now. Raises UsageError as open_driver, and without Triton."""
    driver = open_driver(index)
    from coterie.devices.cuda import CudaDevice  # noqa: PLC0415 - the extra cuda

    return CudaDevice(spec, orchestration, driver)


def describe_gpu() -> str:
    """One line for people: the GPU that `--device cuda` would use, or why there is none."""
    try:
        _check_torch()
        driver = open_driver()
    except UsageError as error:
        return f"none for --device cuda: {error.fact}"
    facts, (major, minor) = driver.facts, driver.facts.capability
    room = f"{format_bytes(driver.free_bytes())} free of {format_bytes(facts.total_bytes)}"
    return (
        f"{facts.name}, {facts.multiprocessors} multiprocessors of capability {major}.{minor}, {room}; {facts.software}"
    )


def _check_torch() -> None:
    """Ask the installed packages, which takes no seconds as importing PyTorch does."""
    try:
        found = version("torch")
    except PackageNotFoundError as error:
        remedy = "install the extra cuda: pip install 'coterie[cuda]', or use --device cpu"
        raise UsageError("--device cuda", "PyTorch is not installed", remedy) from error
    if found.endswith("+cpu"):
        fact = f"this PyTorch ({found}) was built without CUDA"
        raise UsageError("--device cuda", fact, "install PyTorch's CUDA build, or use --device cpu")

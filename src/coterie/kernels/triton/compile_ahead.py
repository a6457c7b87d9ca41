"""Kernels compiled before they are launched: what a launch asks of Triton's compiler, for another process to do.

    launch -> Wanted    kernel, types and alignment of what it is given, constants     (several launches may be alike)
    Wanted -> key       where Triton's cache on disk has it, or would have it

What Triton compiles a kernel for is decided by Triton, which is given stand-ins for tensors: of the same type, and at
addresses that are multiples of 16 where theirs are. Neither a key nor a compilation needs a GPU, only its capability.
Knows nothing about rows, or about who compiles what where.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import torch
import triton
from triton import knobs
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler.compiler import ASTSource, make_backend
from triton.runtime.cache import get_cache_key, get_cache_manager
from triton.runtime.jit import JITFunction, create_function_from_signature

from coterie.kernels.triton.rows import ALIGN_BYTES, Launch

WARP = 32  # threads, on every NVIDIA GPU


@dataclass(frozen=True, slots=True)
class There:
    """Stands for a tensor: its type, and an address with the remainder of its own."""

    dtype: torch.dtype
    remainder: int

    def data_ptr(self) -> int:
        """An address that is aligned as the tensor's."""
        return self.remainder


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kernel to compile. Equal for launches that are one compiled kernel; grids do not matter."""

    module: str
    name: str
    args: tuple[There | int, ...]
    constants: tuple[tuple[str, object], ...]

    @staticmethod
    def of(launch: Launch) -> Wanted:
        """What a launch's first call would compile. Raises TypeError for an argument of another kind."""
        args = tuple([_stand_in(one) for one in launch.args])
        return Wanted(launch.kernel.fn.__module__, launch.kernel.fn.__name__, args, tuple(launch.constants.items()))

    @property
    def kernel(self) -> Any:
        """The kernel itself."""
        return getattr(import_module(self.module), self.name)

    def compile(self) -> bool:
        """Compile it for the active target, unless it is in Triton's cache on disk; whether it had to be."""
        heard: list[bool] = []
        before, knobs.compilation.listener = knobs.compilation.listener, lambda **told: heard.append(told["cache_hit"])
        try:
            compiled = self.kernel.warmup(*self.args, grid=(1,), **dict(self.constants))
        finally:
            knobs.compilation.listener = before
        _compile_start(compiled)
        return heard == [False]

    def key(self, capability: tuple[int, int]) -> str:
        """By what Triton's cache on disk knows it for a GPU of a capability, as its compiler finds out first."""
        kernel, given, backend = self.kernel, dict(self.constants), make_backend(target_of(capability))
        given["debug"] = kernel.debug or knobs.runtime.debug
        given["instrumentation_mode"] = knobs.compilation.instrumentation_mode
        bound, special, options = _binder(kernel, capability)(*self.args, **given)
        options, signature, constants, attributes = kernel._pack_args(backend, given, bound, special, options)
        source = ASTSource(kernel, signature, constants, attributes)
        options = backend.parse_options(options.__dict__)
        key = get_cache_key(source, backend, options, get_cache_invalidating_env_vars())
        return hashlib.sha256(key.encode()).hexdigest()


def is_kept(key: str, wanted: Wanted) -> bool:
    """Whether Triton's cache on disk has it, by its key."""
    name = f"{wanted.name[:150]}.json"  # as its compiler names what it writes last
    group = Path(cache_folder(), _folder_of(key), f"__grp__{name}")
    return group.is_file() and bool(get_cache_manager(key).get_group(name))


def _folder_of(key: str) -> str:
    """A manager would make the folder, also where nothing is in it."""
    return base64.b32encode(bytes.fromhex(key)).decode().rstrip("=")


class NoGpu:
    """Stands for Triton's driver where there is no GPU, or it is to be left alone: names what is compiled for."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = target_of(capability)

    def get_current_target(self) -> GPUTarget:
        """The GPU that is not there."""
        return self._target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Nothing is launched on it."""
        return 0


def target_of(capability: tuple[int, int]) -> GPUTarget:
    """What Triton calls a GPU of a capability."""
    return GPUTarget("cuda", 10 * capability[0] + capability[1], WARP)


def _compile_start(compiled: Any) -> None:
    """Let what starts a kernel be compiled too, in C: Triton 3.6 does so for each list of parameters that it meets.

    From 3.7 on one function starts all. Without a CUDA driver to link there is nothing that could be started either.
    """
    if hasattr(driver, "make_launcher"):
        with suppress(Exception):  # the launch meets the same, and says so
            driver.CudaLauncher(compiled.src, compiled.metadata)


@cache
def _binder(kernel: Any, capability: tuple[int, int]) -> Any:
    """What finds out for what a kernel is compiled, from its arguments: made once, as Triton does."""
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(target_of(capability)))


def compile_for(capability: tuple[int, int]) -> None:
    """Let this process compile for a GPU of that capability from now on, and launch nothing."""
    triton.runtime.driver.set_active(NoGpu(capability))


@cache
def settle_keys() -> None:
    """Let keys be the same in every process: to be called before the first kernel is launched, or asked for its key.

    In Triton 3.6 and 3.7 the hash of a function has global constants of a function that it calls where that one was
    hashed before it, and only there. So what was hashed first decided whether a kernel was found on disk.
    """
    package = __name__.rpartition(".")[0]
    found = walk_packages(import_module(package).__path__, f"{package}.")
    for name in sorted(module.name for module in found):
        for value in [*vars(import_module(name)).values()]:
            if isinstance(value, JITFunction) and value.fn.__module__ == name:
                _ = value.cache_key


def wanted_by(launches: Iterable[Any]) -> dict[Wanted, None]:
    """What launches (as rows.py makes them) ask for, each once, in their order."""
    return dict.fromkeys(Wanted.of(launch) for launch in launches)


def cache_folder() -> Path:
    """Where Triton keeps what it compiled."""
    return Path(knobs.cache.dir)


def _stand_in(value: object) -> There | int:
    if isinstance(value, torch.Tensor):
        return There(value.dtype, value.data_ptr() % ALIGN_BYTES)
    if isinstance(value, int):
        return value
    raise TypeError(f"a kernel is given {value!r}, neither a tensor nor a whole number")

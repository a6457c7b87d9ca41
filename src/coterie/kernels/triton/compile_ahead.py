"""Kernels compiled before they are launched: what a launch would ask of Triton's compiler, for another process to do.

    launch -> Wanted    kernel, types and alignment of its arguments, constants     (launches may share one)
    Wanted -> key       where Triton's disk cache has it, or would have it

Triton itself decides what to compile a kernel for; it gets stand-ins for tensors, of the same type, and at addresses
that are multiples of 16 where the tensors' are. Neither a key nor a compilation needs a GPU, only its capability.
Knows nothing about rows, or about which process compiles what.
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

WARP = 32  # threads per warp on every NVIDIA GPU


@dataclass(frozen=True, slots=True)
class StandIn:
    """A stand-in for a tensor: its type, and its address modulo the alignment."""

    dtype: torch.dtype
    remainder: int

    def data_ptr(self) -> int:
        """An address with the tensor's alignment."""
        return self.remainder


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kernel to compile. Equal for launches that share a compiled kernel; grids do not matter."""

    module: str
    name: str
    args: tuple[StandIn | int, ...]
    constants: tuple[tuple[str, object], ...]

    @staticmethod
    def of(launch: Launch) -> Wanted:
        """What a launch's first call would compile. Raises TypeError for arguments of other kinds."""
        args = tuple([_stand_in(one) for one in launch.args])
        return Wanted(launch.kernel.fn.__module__, launch.kernel.fn.__name__, args, tuple(launch.constants.items()))

    @property
    def kernel(self) -> Any:
        """The Triton kernel."""
        return getattr(import_module(self.module), self.name)

    def compile(self) -> bool:
        """Compile for the active target, unless Triton's disk cache has it; returns whether it was compiled."""
        heard: list[bool] = []
        before, knobs.compilation.listener = knobs.compilation.listener, lambda **told: heard.append(told["cache_hit"])
        try:
            compiled = self.kernel.warmup(*self.args, grid=(1,), **dict(self.constants))
        finally:
            knobs.compilation.listener = before
        _compile_start(compiled)
        return heard == [False]

    def key(self, capability: tuple[int, int]) -> str:
        """Key in Triton's disk cache for a GPU of this capability, computed as Triton's compiler does."""
        kernel, given, backend = self.kernel, dict(self.constants), make_backend(target_of(capability))
        given["debug"] = kernel.debug or knobs.runtime.debug
        given["instrumentation_mode"] = knobs.compilation.instrumentation_mode
        bound, special, options = _binder(kernel, capability)(*self.args, **given)
        options, signature, constants, attributes = kernel._pack_args(backend, given, bound, special, options)
        source = ASTSource(kernel, signature, constants, attributes)
        options = backend.parse_options(options.__dict__)
        key = get_cache_key(source, backend, options, get_cache_invalidating_env_vars())
        return hashlib.sha256(key.encode()).hexdigest()


def is_cached(key: str, wanted: Wanted) -> bool:
    """Whether Triton's disk cache holds the kernel under this key."""
    name = f"{wanted.name[:150]}.json"  # the file that Triton's compiler writes last
    group = Path(cache_folder(), _folder_of(key), f"__grp__{name}")
    return group.is_file() and bool(get_cache_manager(key).get_group(name))


def _folder_of(key: str) -> str:
    """The key's folder name. Triton's cache manager would create the folder, even for a missing key."""
    return base64.b32encode(bytes.fromhex(key)).decode().rstrip("=")


class NoGpu:
    """Stands in for Triton's driver where there is no GPU, or it must not be touched: only names the target."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = target_of(capability)

    def get_current_target(self) -> GPUTarget:
        """The target to compile for."""
        return self._target

    def get_current_device(self) -> int:
        """The only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """A placeholder: nothing is launched."""
        return 0


def target_of(capability: tuple[int, int]) -> GPUTarget:
    """Triton's name for a GPU of this capability."""
    return GPUTarget("cuda", 10 * capability[0] + capability[1], WARP)


def _compile_start(compiled: Any) -> None:
    """Also compile the kernel's launcher, which Triton 3.6 generates in C for each new parameter list.

    From 3.7 on, one launcher serves all. Without a CUDA driver to link, no launcher could be compiled.
    """
    if hasattr(driver, "make_launcher"):
        with suppress(Exception):  # the launch would hit the same error, and report it
            driver.CudaLauncher(compiled.src, compiled.metadata)


@cache
def _binder(kernel: Any, capability: tuple[int, int]) -> Any:
    """Triton's function that derives from arguments what to compile a kernel for; one per kernel, as in Triton."""
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(target_of(capability)))


def compile_for(capability: tuple[int, int]) -> None:
    """Make this process compile for GPUs of this capability from now on, and launch nothing."""
    triton.runtime.driver.set_active(NoGpu(capability))


@cache
def settle_keys() -> None:
    """Make cache keys equal in every process: call before the first kernel is launched or asked for its key.

    In Triton 3.6 and 3.7, a function's hash includes global constants of a function that it calls only if that one was
    hashed before. So hashing order would decide whether a kernel is found on disk.
    """
    package = __name__.rpartition(".")[0]
    found = walk_packages(import_module(package).__path__, f"{package}.")
    for name in sorted(module.name for module in found):
        for value in [*vars(import_module(name)).values()]:
            if isinstance(value, JITFunction) and value.fn.__module__ == name:
                _ = value.cache_key


def wanted_by(launches: Iterable[Any]) -> dict[Wanted, None]:
    """The kernels that launches (as rows.py makes them) need, each once, in order."""
    return dict.fromkeys(Wanted.of(launch) for launch in launches)


def cache_folder() -> Path:
    """Folder of Triton's disk cache."""
    return Path(knobs.cache.dir)


def _stand_in(value: object) -> StandIn | int:
    if isinstance(value, torch.Tensor):
        return StandIn(value.dtype, value.data_ptr() % ALIGN_BYTES)
    if isinstance(value, int):
        return value
    raise TypeError(f"a kernel is given {value!r}, neither a tensor nor a whole number")

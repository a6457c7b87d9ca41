"""Triton's interpreter for tests: kernels run on this machine's memory, by rows as the CPU's lowering makes them.

Import this before anything that imports triton: it decides at import whether it interprets.
Knows nothing about what the kernels should give.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")
pytest.importorskip("triton", reason="the extra cuda is not installed: triton is missing")

import torch
import triton
from tests.device.lazy_gpu import running
from tests.device.native import row_of
from tests.device.remembering import remember
from triton.runtime import interpreter

from coterie.devices.cpu.bound import Bound, Workspace
from coterie.kernels import cpu as kernels
from coterie.kernels.triton import launch as gpu
from coterie.kernels.triton.launch import Bucket
from coterie.kernels.triton.tiles import Tiles

if not isinstance(triton.language.zeros, interpreter.InterpretedFunction):
    raise RuntimeError("triton was imported before it was told to interpret; import tests.device.interpreted first")

# Its check of 32-bit sums for overflow takes most of the time of small kernels, and finds none on small shapes.
interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
remember()


def _watch(name, pointers_at, mask_at):
    """Have an operation of the interpreter look, before it touches memory, whether a GPU could."""
    plain = getattr(interpreter.InterpreterBuilder, name)

    def operation(self, *given, **named):
        driver, pointers = getattr(running, "driver", None), given[pointers_at]
        if driver is not None:
            there = None if mask_at is None else np.broadcast_to(given[mask_at].data, pointers.data.shape).astype(bool)
            addresses = (pointers.data if there is None else pointers.data[there]).astype(np.int64).reshape(-1)
            size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
            assert not len(addresses) or driver.reaches(addresses, size), f"{name} of what is not the GPU's"
        return plain(self, *given, **named)

    setattr(interpreter.InterpreterBuilder, name, operation)


def _hold_to(plain):
    """Have what kernels say of addresses be so: wide loads of a GPU fault where it is not."""

    def set_attr(self, name, values):
        if name == "tt.divisibility":
            assert not (self.data.astype(np.int64) % values[-1]).any(), f"no multiple of {values}: {self.data}"
        plain(self, name, values)

    return set_attr


for _name, _pointers_at, _mask_at in (
    ("create_masked_load", 0, 1),
    ("create_masked_store", 0, 2),
    ("create_atomic_rmw", 1, 3),
    ("create_atomic_cas", 0, None),
):
    _watch(_name, _pointers_at, _mask_at)
interpreter.TensorHandle.set_attr = _hold_to(interpreter.TensorHandle.set_attr)

# Fewer, larger programs than on a GPU, where the number of programs is what takes time; the code is the same.
WIDE = Tiles(few_rows=((1 << 62, 64),), few_sums=64 * 64, low_rank=0, delta_width=128)


@contextmanager
def looking(looks):
    """Call `looks[name]` with the positional arguments before each operation of that name of the interpreter."""

    def looked(plain, look):
        def operation(*args, **kwargs):
            look(*args)
            return plain(*args, **kwargs)

        return operation

    builder = interpreter.interpreter_builder
    for name, look in looks.items():
        setattr(builder, name, looked(getattr(builder, name), look))
    try:
        yield
    finally:
        for name in looks:
            delattr(builder, name)


def call(kernel, bucket, tiles=WIDE, **operands):
    """Run one instruction, whose arrays must be at multiples of 16, where the device has them."""
    run(row_of(kernel, operands), bucket, tiles)


def run(rows, bucket, tiles=WIDE, on_gpu=None):
    """Launch rows in order; the GPU has them `on_gpu`. Scratch starts as NaN, so reading what none wrote shows."""
    scratch = torch.full((gpu.scratch_bytes(rows, bucket, tiles),), 0xFF, dtype=torch.uint8)
    copied = torch.from_numpy((rows if on_gpu is None else on_gpu).copy())
    with np.errstate(all="ignore"):  # as silent as a GPU about values that are not stored
        for index in range(len(rows)):
            gpu.launch(rows, copied, index, bucket, scratch, tiles)


def bound_rows(expert, step):
    """The rows of one step of an expert in the CPU device's memory."""
    binding = expert.binding(step)
    prepared, bases = expert.device._prepare(expert.exe, binding, 1)
    bound = Bound(expert.exe, prepared.sizes)
    bound.put(binding, prepared, bases, Workspace())
    return bound


def inspect(expert, step, tiles=WIDE, most=None):
    """Every stored value of one step by the GPU's kernels."""
    sizes, bound = step.sizes, bound_rows(expert, step)
    bucket = most or Bucket(sizes.T, sizes.B, sizes.R, step.block_tables_BM.shape[1] * expert.Z)
    run(bound.rows, bucket, tiles)
    return bound.stored_values()


def aligned(values):
    """A copy at an address that is a multiple of 16."""
    values = np.ascontiguousarray(values)
    memory = np.zeros(values.nbytes + 16, np.uint8)
    start = -kernels.address(memory) % 16
    memory[start : start + values.nbytes] = values.view(np.uint8).reshape(-1)
    return memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)

"""Instruction rows with all addresses filled in, cached per step size, and host-side execution of steps with them.

    Bound      rows | tokens positions sequence block_tables rows | settings ends | feed          one per (T, B, R)
    put(...)   copies a run's inputs into these arrays, and rewrites only the addresses that have changed

Knows nothing about lanes, events or files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType, to_f32
from coterie.core.shapes import Shape, Sizes
from coterie.device import I32, Binding, Sampling
from coterie.devices.real.changes import SETTING, note
from coterie.devices.real.host_memory import Bytes, Slab
from coterie.devices.real.lower_delta_net import STATE_TABLES
from coterie.devices.real.step import INPUTS, LoweredExecutable, StepRows, encode_sampling
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import I64

MAX_BOUND = 64  # step sizes cached; each takes about 400 bytes per region, plus 8 per matrix of a branch

Ends: TypeAlias = tuple[tuple[int, ...], ...]
Bases: TypeAlias = tuple[int, int, int, tuple[int, ...]]
"""Base addresses: the weights' extent, the shared extent (0 if none), the KV slab, and the extents of variants."""


class Workspace:
    """Scratch memory for stored values, grown in powers of two and reused by every run."""

    def __init__(self) -> None:
        self._slab = Slab(0)

    @property
    def size_bytes(self) -> int:
        """Bytes allocated."""
        return len(self._slab.bytes)

    def at_least(self, size_bytes: int) -> Slab:
        """A slab with room for `size_bytes`."""
        if len(self._slab.bytes) < size_bytes:
            self._slab = Slab(1 << (size_bytes - 1).bit_length())
        return self._slab


class Bound:
    """An executable's rows and input arrays for one step size. Used by one run at a time."""

    def __init__(self, exe: LoweredExecutable, sizes: Sizes) -> None:
        self._exe, self._sizes = exe, sizes
        self._plan, self._total_bytes = exe.plan(sizes)
        self.rows = exe.template.rows()
        self._tables = np.zeros(exe.template.table_words, np.int64)
        exe.template.put_tables(self.rows, kernels.address(self._tables))
        self.inputs: dict[str, I32] = {name: np.zeros(0, np.int32) for name in INPUTS}
        self.feed = np.zeros(len(kernels.FEED), np.int64)
        self.settings = np.zeros((sizes.R, kernels.SETTING_WORDS), np.int64)
        self._sampling: tuple[Sampling, ...] = ()
        self._changes: tuple[I64 | None, ...] = ()
        self._ends: Ends | None = None
        self._end_arrays = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self._weights: tuple[object, ...] | None = None  # key of the weight addresses now in the rows
        self._held: I64 | None = None  # keeps the tables alive that rows in shares point to
        self._shares: tuple[object, ...] | None = None  # and their key
        self._pages: tuple[int, int, int] | None = None
        self._slab: Slab | None = None
        self.drawn_R: I32 = np.zeros(0, np.int32)

    def put(self, binding: Binding, step: StepRows, bases: Bases, workspace: Workspace) -> None:
        """Bind a run's inputs, weights and settings."""
        weights_at, shared_at, kv_at, _ = bases
        self._put_inputs(step, kv_at, binding.block_bytes)
        made_of = binding.offsets, binding.shared, weights_at, shared_at
        if made_of != self._weights:
            addresses = self._exe.offsets(binding).addresses(weights_at, shared_at)
            self._exe.template.put_weights(self.rows, addresses, self._tables)
            self._weights = made_of
        if step.shares is not None or self._held is not None:
            self._put_shares(binding, step, bases)
        slab = workspace.at_least(self._total_bytes)
        if slab is not self._slab:
            self._put_stored(slab)
        if step.sampling != self._sampling:
            self.settings[:] = encode_sampling(step.sampling)
            self._sampling = step.sampling
        if step.changes or self._changes:
            self._put_changes(step.changes)
        ends = step.end_ids or ((),) * self._sizes.R
        if ends != self._ends:
            self._put_ends(ends)

    def keep(self, steps: int) -> I32:
        """Set the number of steps; return the array that will receive the sampled tokens.

        It is [steps, R], or [steps, 0] if the program draws none.
        """
        kept = np.empty((steps, self._sizes.R if self._exe.drawn else 0), np.int32)
        self.feed[kernels.FEED["steps"]], self.feed[kernels.FEED["kept"]] = steps, kernels.address(kept)
        return kept

    def stored_values(self) -> dict[str, npt.NDArray[np.float32]]:
        """Copies of every value in the workspace, converted to float32, by name."""
        found = {}
        for name in self._plan:
            value = self._exe.program.graph.values[name]
            found[name] = to_f32(self._view(name, value.shape, value.dtype).copy(), value.dtype)
        return found

    def _put_shares(self, binding: Binding, step: StepRows, bases: Bases) -> None:
        """Give each share of the rows its own weights, or go back to one set of weights for all rows."""
        shareable = self._exe.shareable
        if shareable is None:
            raise RuntimeError("variants are refused where nothing takes rows in shares")
        if step.shares is None:
            shareable.take_back(self.rows)
            self._held = self._shares = None
            return
        weights_at, shared_at, _, variants_at = bases
        made_of = *(self._weights or ()), binding.variants and binding.variants.offsets, variants_at, *step.shares.key
        if made_of == self._shares:
            return
        own = self._exe.offsets(binding)
        places = zip((own, *self._exe.variants(binding)), (weights_at, *variants_at), strict=True)
        addresses_GW = np.stack([offsets.addresses(at, shared_at) for offsets, at in places])
        self._held = np.zeros(shareable.words(*step.shares.counts), np.int64)
        shareable.put(self.rows, addresses_GW, own.is_shared, step.shares, self._held, kernels.address(self._held))
        self._shares = made_of

    def _put_inputs(self, step: StepRows, kv_at: int, block_bytes: int) -> None:
        pages = kv_at, block_bytes, step.inputs["block_tables"].shape[1]
        if pages != self._pages:
            self.inputs = {name: array.copy() for name, array in step.inputs.items()}
            self._put_named(kv_at, block_bytes)
            self._pages = pages
            return
        for name, array in self.inputs.items():
            array[...] = step.inputs[name]

    def _put_named(self, kv_at: int, block_bytes: int) -> None:
        named = {name: kernels.address(array) for name, array in self.inputs.items()}
        named |= {"sampling": kernels.address(self.settings), "kv": kv_at, "block_bytes": block_bytes}
        named |= {"T": self._sizes.T, "B": self._sizes.B, "R": self._sizes.R}
        named["table_width"] = self.inputs["block_tables"].shape[1]
        kv, tables = self._exe.program.kv, self.inputs["block_tables"]
        named["Z"] = kv.tokens_per_block(block_bytes)
        named[STATE_TABLES] = named["block_tables"]
        named["block_tables"] += kv.state_blocks(block_bytes) * tables.itemsize
        template = self._exe.template
        template.put_named(self.rows, np.array([named[name] for name in template.named], np.int64))
        self._put_feed({name: named[name] for name in ("tokens", "positions", "rows", "T")})
        self._put_feed({"R": self._sizes.R if self._exe.drawn else 0})

    def _put_stored(self, slab: Slab) -> None:
        self._slab = slab
        template = self._exe.template
        addresses = [slab.address + self._plan[name] for name in template.stored]
        template.put_stored(self.rows, np.array(addresses, np.int64))
        if not self._exe.drawn:
            return
        self.drawn_R = self._view(self._exe.drawn, (self._sizes.R,), DType.I32).view(np.int32)
        self._put_feed({"drawn": slab.address + self._plan[self._exe.drawn]})

    def note(self, drawn_R: I32) -> None:
        """Count the sampled tokens in the rows' penalties, before the next step."""
        for block, token in zip(self._changes, drawn_R.tolist(), strict=False):
            if block is not None:
                note(block, token)

    def _put_changes(self, changes: tuple[I64 | None, ...]) -> None:
        """Point the settings at these blocks, which are kept alive here; empty clears them."""
        self._changes = changes
        self._put_feed({"settings": kernels.address(self.settings) if changes else 0})
        words = [0 if block is None else kernels.address(block) for block in changes]
        self.settings[:, SETTING] = words or 0

    def _put_ends(self, ends: Ends) -> None:
        firsts = np.cumsum([0, *(len(one) for one in ends)], dtype=np.int32)
        self._end_arrays = np.array([token for one in ends for token in one], np.int32), firsts
        self._put_feed({"ends": kernels.address(self._end_arrays[0]), "first_end": kernels.address(firsts)})
        self._ends = ends

    def _put_feed(self, words: dict[str, int]) -> None:
        for name, word in words.items():
            self.feed[kernels.FEED[name]] = word

    def _view(self, name: str, shape: Shape, dtype: DType) -> npt.NDArray[np.generic]:
        if self._slab is None:
            raise RuntimeError("rows are bound before their values are read")
        start, sizes = self._plan[name], tuple(self._sizes.of(dim) for dim in shape)
        size_bytes = self._sizes.count(shape) * dtype.size_bytes
        return self._slab.bytes[start : start + size_bytes].view(dtype.numpy).reshape(sizes)


class Binder:
    """An LRU cache of bound rows by executable and step size, and the workspace that they share."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, int, int], Bound] = {}
        self._workspace = Workspace()

    @property
    def workspace_bytes(self) -> int:
        """Bytes of workspace allocated so far."""
        return self._workspace.size_bytes

    @property
    def workspace(self) -> Bytes:
        """The workspace, which still holds the values of the latest run except where buffers were reused."""
        return self._workspace.at_least(0).bytes

    def bind(self, exe: LoweredExecutable, binding: Binding, step: StepRows, bases: Bases) -> Bound:
        """Rows bound for this run; valid until the next call."""
        key = id(exe), step.sizes.T, step.sizes.B, step.sizes.R
        bound = self._kept.pop(key, None) or Bound(exe, step.sizes)
        self._kept[key] = bound  # most recently used last
        if len(self._kept) > MAX_BOUND:
            del self._kept[next(iter(self._kept))]
        bound.put(binding, step, bases, self._workspace)
        return bound

    def close(self) -> None:
        """Free all memory."""
        self._kept.clear()
        self._workspace = Workspace()


def run_stepwise(
    bound: Bound, step: StepRows, kept: I32, start: Callable[[I64, bool], None], interrupted: Callable[[], bool]
) -> int:
    """Run steps one at a time, feeding sampled tokens back on the host; return how many were done.

    `start(rows, is_first)` executes one step. Python equivalent of csrc/feed.h.
    """
    for i in range(len(kept)):
        start(bound.rows, i == 0)
        drawn_R = kept[i]
        drawn_R[:] = bound.drawn_R
        ended = any(int(token) in ends for token, ends in zip(drawn_R, step.end_ids, strict=False))
        if ended or (drawn_R < 0).any() or interrupted() or i + 1 == len(kept):
            return i + 1
        bound.inputs["tokens"][bound.inputs["rows"]] = drawn_R
        bound.inputs["positions"] += 1
        bound.note(drawn_R)
    return len(kept)

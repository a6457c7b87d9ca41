"""Buffer lifetimes to offsets: values that live at the same time get different slots of one workspace.

    value   a ####            slot 0: a, c      a slot is as large as the largest value that uses it;
            b    ####         slot 1: b         its size is linear in T and R, so one plan serves every step
            c        ####

Knows nothing about memory itself; a device asks for offsets once the sizes are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coterie.core.shapes import Shape, Sizes

ALIGN_BYTES = 64  # a cache line; keeps vector loads of one buffer from sharing lines with another


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A stored value: written by region `first`, last read by region `last` (both inclusive)."""

    name: str
    shape: Shape
    element_bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """Which slot each stored value uses, and the values of each slot (to size it)."""

    slot_of: Mapping[str, int]
    slots: tuple[tuple[tuple[Shape, int], ...], ...]

    def slot_bytes(self, sizes: Sizes) -> list[int]:
        """Bytes of each slot in this step, aligned."""
        return [max(_aligned(sizes.count(shape) * width) for shape, width in slot) for slot in self.slots]

    def offsets(self, sizes: Sizes) -> tuple[dict[str, int], int]:
        """Offset of each stored value in the workspace, and the workspace's size in bytes."""
        starts, total = [], 0
        for size in self.slot_bytes(sizes):
            starts.append(total)
            total += size
        return {name: starts[slot] for name, slot in self.slot_of.items()}, total


def plan_buffers(lifetimes: Sequence[Lifetime], share: bool = True) -> BufferPlan:
    """Give each value the first slot that is free over its lifetime; with `share=False`, its own (coterie diff)."""
    slot_of: dict[str, int] = {}
    slots: list[list[tuple[Shape, int]]] = []
    free_after: list[int] = []
    for life in sorted(lifetimes, key=lambda item: (item.first, item.name)):
        slot = next((i for i, last in enumerate(free_after) if share and last < life.first), len(slots))
        if slot == len(slots):
            slots.append([])
            free_after.append(-1)
        slots[slot].append((life.shape, life.element_bytes))
        free_after[slot] = life.last
        slot_of[life.name] = slot
    return BufferPlan(slot_of, tuple(tuple(dict.fromkeys(slot)) for slot in slots))


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES

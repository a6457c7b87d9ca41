"""The budget of the near tier in bytes: whether the experts fit it, and how much of it they need.

Knows nothing about devices: numbers in, numbers or a LargestExpertError out.
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import LargestExpertError
from coterie.core.units import format_bytes
from coterie.memory.slab import round_up


def plan_budget(
    budget_bytes: int, expert_bytes: Mapping[str, int], base_bytes: int = 0, where: str = "--near", lever: str = ""
) -> int:
    """The bytes to reserve for experts of these sizes: the budget, or less when all of them fit in less.

    `base_bytes` of the budget are those of bases that they share, which stay. Raises LargestExpertError, naming the
    expert and both sizes, when the largest one does not fit beside them: `where`, and what can be done (`lever`).
    """
    usable = (budget_bytes - base_bytes) // BLOCK_BYTES * BLOCK_BYTES
    if not expert_bytes:
        return usable
    largest = max(sorted(expert_bytes), key=lambda name: expert_bytes[name])
    need = round_up(expert_bytes[largest])
    if need > usable:
        beside = f" beside {format_bytes(base_bytes)} of bases" if base_bytes else ""
        had = budget_bytes // BLOCK_BYTES * BLOCK_BYTES
        lever = lever or f"set --near to at least {base_bytes + need} B"
        raise LargestExpertError(where, largest, beside, base_bytes + need, had, lever)
    # Reserved memory is touched at start, so more than all experts together would be paid for and never used.
    return min(usable, sum(round_up(size) for size in expert_bytes.values()))

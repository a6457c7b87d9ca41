"""The near tier's budget in bytes: whether each expert fits, and how much of the budget is needed.

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
    """The bytes to reserve for experts of these sizes: the budget, or less if all experts together fit in less.

    `base_bytes` are taken off first, for shared base models, which are never evicted. Raises LargestExpertError when
    the largest expert does not fit in the rest; `where` and `lever` are its location and suggested remedy.
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
    # Reserved memory is touched at start, so anything beyond the sum of all experts would be committed in vain.
    return min(usable, sum(round_up(size) for size in expert_bytes.values()))

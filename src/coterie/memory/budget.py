"""Budgets in bytes: how the near tier is split, and whether the experts fit their part of it.

Knows nothing about devices: numbers in, numbers or a CapacityError out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError
from coterie.core.units import format_bytes
from coterie.memory.slab import round_up


@dataclass(frozen=True, slots=True)
class NearSplit:
    """The parts of the near tier, in bytes. Separate slabs: a router never evicts an expert, or the reverse."""

    experts_bytes: int
    kv_bytes: int
    router_bytes: int


def split_near(total_bytes: int, kv_bytes: int, router_bytes: int = 0) -> NearSplit:
    """Give KV and router their parts and the experts the rest, in whole blocks.

    Raises CapacityError when not a block is left for experts.
    """
    kv, router = round_up(kv_bytes), round_up(router_bytes)
    experts = (total_bytes - kv - router) // BLOCK_BYTES * BLOCK_BYTES
    if experts < BLOCK_BYTES:
        levers = [f"give more than {format_bytes(kv + router)} in all", f"take less than {format_bytes(kv)} for KV"]
        if router:
            levers.append(f"use a router smaller than {format_bytes(router)}")
        raise CapacityError(
            "memory", "KV, router and at least one block of an expert", kv + router + BLOCK_BYTES, total_bytes, levers
        )
    return NearSplit(experts, kv, router)


def plan_budget(budget_bytes: int, expert_bytes: Mapping[str, int], base_bytes: int = 0, option: str = "--near") -> int:
    """The bytes to reserve for experts of these sizes: the budget, or less when all of them fit in less.

    `base_bytes` of the budget are those of bases that they share, which stay. Raises CapacityError, naming the expert
    and both sizes, when the largest expert does not fit beside them.
    """
    usable = (budget_bytes - base_bytes) // BLOCK_BYTES * BLOCK_BYTES
    if not expert_bytes:
        return usable
    largest = max(sorted(expert_bytes), key=lambda name: expert_bytes[name])
    need = round_up(expert_bytes[largest])
    if need > usable:
        levers = [
            f"set {option} to at least {base_bytes + need} B",
            f"leave {largest} out, or use a smaller expert",
        ]
        what = f"the largest expert, {largest},"
        what += f" beside {format_bytes(base_bytes)} of bases," if base_bytes else ""
        raise CapacityError(option, what, base_bytes + need, budget_bytes // BLOCK_BYTES * BLOCK_BYTES, levers)
    # Reserved memory is touched at start, so more than all experts together would be paid for and never used.
    return min(usable, sum(round_up(size) for size in expert_bytes.values()))

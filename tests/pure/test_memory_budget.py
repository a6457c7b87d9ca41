"""The budget of the near tier, and the refusal of one below the largest expert."""

from __future__ import annotations

import pytest

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError
from coterie.memory.budget import plan_budget

BLOCK = BLOCK_BYTES


def test_a_budget_below_the_largest_expert_is_refused_with_both_sizes():
    with pytest.raises(CapacityError, match=r"\[--near\] the expert b needs 16\.00 KiB but 12\.00 KiB") as refusal:
        plan_budget(3 * BLOCK + 1, {"a": BLOCK, "b": 3 * BLOCK + 1})
    assert refusal.value.levers == ("set --near to at least 16384 B", "leave b out, or use a smaller expert")


def test_no_more_is_reserved_than_all_experts_need():
    sizes = {"a": BLOCK, "b": 3 * BLOCK}
    assert plan_budget(100 * BLOCK, sizes) == 4 * BLOCK
    assert plan_budget(3 * BLOCK + 9, sizes) == 3 * BLOCK
    assert plan_budget(2 * BLOCK + 9, {}) == 2 * BLOCK


def test_bases_are_a_part_of_the_budget_that_stays():
    sizes = {"a": BLOCK, "b": 3 * BLOCK}
    assert plan_budget(100 * BLOCK, sizes, 5 * BLOCK) == 4 * BLOCK
    assert plan_budget(8 * BLOCK, sizes, 5 * BLOCK) == 3 * BLOCK
    with pytest.raises(CapacityError, match=r"b beside 20\.00 KiB of bases needs 32\.00 KiB but 28\.00 KiB") as refusal:
        plan_budget(7 * BLOCK, sizes, 5 * BLOCK)
    assert refusal.value.levers[0] == "set --near to at least 32768 B"

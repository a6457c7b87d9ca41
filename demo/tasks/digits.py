"""Column arithmetic written out step by step, so that each step is one small fact.

Knows nothing about tasks or wording.
"""

from __future__ import annotations


def columns(a: int, b: int, sign: str) -> str:
    """Column by column from the last digit: "7+5+0=12 4+8+1=13 0+0+1=01", or "2-5-0=17 3-8-1=14 1-0-1=00"."""
    steps, carry = [], 0
    for place in (1, 10, 100):
        x, y = a // place % 10, b // place % 10
        if sign == "+":
            total = x + y + carry
            steps.append(f"{x}+{y}+{carry}={total:02d}")
            carry = total // 10
        else:
            total = x - y - carry
            steps.append(f"{x}-{y}-{carry}={int(total < 0)}{total % 10}")
            carry = int(total < 0)
    return " ".join(steps)

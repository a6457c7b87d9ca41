"""OpSpec: what a row of the table of ops says.

Knows nothing about which ops there are (ops.py, eager/ops.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What one row of the table says.

    An operand marked + stands for as many as an op has of it, and all that are marked for equally many, group by group.
    The last one may be marked ??: an op without it has one operand fewer.
    `view`: it computes nothing, it only says how its reader finds the numbers. A spatial machine and PyTorch read
    through it; a machine that runs every op as a kernel copies.
    """

    meaning: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[str, ...] = ()
    view: bool = False

    def operands(self, given: int) -> tuple[str, ...]:
        """The inputs of an op that has so many; more or fewer than that where no number of groups is right."""
        marked = [name for name in self.inputs if "+" in name]
        each = max(1, (given - len(self.inputs) + len(marked)) // len(marked)) if marked else 1
        named = tuple(name for name in self.inputs for _ in range(each if name in marked else 1))
        return named[:-1] if "??" in named[-1] and given < len(named) else named

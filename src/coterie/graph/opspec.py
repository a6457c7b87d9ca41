"""OpSpec: a row of the table of ops.

Knows nothing about which ops exist (ops.py, eager/ops.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One row of the table.

    An operand marked + is repeated; all such operands equally often, all copies of one before those of the next.
    The last one may be marked ??: an op without it has one operand fewer.
    `view`: the op computes nothing, it only describes how its reader finds the numbers. A spatial machine and PyTorch
    read through it; a machine that runs every op as a kernel copies.
    """

    meaning: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[str, ...] = ()
    view: bool = False

    def operands(self, given: int) -> tuple[str, ...]:
        """Names of the inputs of an op with `given` operands; more or fewer than `given` if no repetition fits."""
        marked = [name for name in self.inputs if "+" in name]
        each = max(1, (given - len(self.inputs) + len(marked)) // len(marked)) if marked else 1
        named = tuple(name for name in self.inputs for _ in range(each if name in marked else 1))
        return named[:-1] if "??" in named[-1] and given < len(named) else named

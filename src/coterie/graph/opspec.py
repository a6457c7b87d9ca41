"""OpSpec: what a row of the table of ops says.

Knows nothing about which ops there are (ops.py, eager_ops.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What one row of the table says.

    `view`: it computes nothing, it only says how its reader finds the numbers. A spatial machine and PyTorch read
    through it; a machine that runs every op as a kernel copies.
    """

    meaning: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[str, ...] = ()
    view: bool = False

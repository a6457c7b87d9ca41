"""Flops of the ops of selective state spaces. Bytes of their states are counted with those of delta nets.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.graph.flops import NORM_FLOPS, Flops, per_output, per_state_number
from coterie.graph.scan.ops import GROUP_NORM, MUL_ROW, SCAN

# Of each number of a head's matrix: its decay, what is written and what is read (a product and a sum each). The steps
# and what passes by are lost in that.
_PER_NUMBER = 5


SCAN_FLOPS: Mapping[str, Flops] = {
    SCAN: per_state_number(_PER_NUMBER),
    GROUP_NORM: per_output(NORM_FLOPS),
    MUL_ROW: per_output(1),
}

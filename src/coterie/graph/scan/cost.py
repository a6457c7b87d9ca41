"""Flops of the ops of selective state spaces. The bytes of their states are counted in delta_net/cost.py.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.graph.flops import NORM_FLOPS, Flops, per_output, per_state_number
from coterie.graph.scan.ops import GROUP_NORM, MUL_ROW, SCAN

# Per number of a head's matrix: decay, write and read (a product and a sum each). Step sizes and the skip connection
# are negligible in comparison.
_PER_NUMBER = 5


SCAN_FLOPS: Mapping[str, Flops] = {
    SCAN: per_state_number(_PER_NUMBER),
    GROUP_NORM: per_output(NORM_FLOPS),
    MUL_ROW: per_output(1),
}

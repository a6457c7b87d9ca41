"""Load imbalance of the CPU's kernels: how many units of work a region is divided into, and the busiest thread's share.

    products       32 weight rows per unit, 16 for narrow weights (csrc/tile.h); q, k and v in whole heads
    attention      key/value heads times spans of 256 positions (csrc/attend_pages.h)
    many tokens    the above, for each tile of TILE_TOKENS tokens

tests/pure/test_cores.py checks these sizes and counts against csrc. Knows nothing about rates.
"""

from __future__ import annotations

from coterie.core.shapes import Sizes
from coterie.devices.modelled.kernels import fixed
from coterie.graph.branch.ops import MATRIX_READERS
from coterie.graph.ir import Graph, Kind
from coterie.graph.program import Region

UNIT_ROWS, NARROW_UNITS, FEW_TOKENS, TILE_TOKENS, SPAN = 32, 32, 16, 132, 256


class Division:
    """The division of one region. Work other than products and attention is assumed to be balanced."""

    def __init__(self, graph: Graph, region: Region) -> None:
        rows = [fixed(graph.values[op.inputs[1]].shape[0]) for op in region.ops if op.kind == "linear"]
        heads = [op for op in region.ops if op.kind in ("rope", "kv_append")]
        attentions = [op for op in region.ops if op.kind in ("attention", "alibi_attention")]
        self._heads = self._rows = self._attends = 0
        if attentions:
            names = attentions[0].inputs
            state = next(graph.values[name] for name in names if name and graph.values[name].kind is Kind.STATE)
            self._attends = fixed(state.shape[2])
        elif any(op.kind in MATRIX_READERS for op in region.ops):
            pass
        elif rows and heads:
            self._heads = sum(rows) // fixed(graph.values[heads[0].inputs[0]].shape[-1])
        elif rows:  # a unit has the same rows of gate and up
            self._rows = rows[0] if len(rows) == 2 and rows[0] == rows[1] else sum(rows)

    def units(self, sizes: Sizes) -> int:
        """Units of work in a step; 0 where the work is assumed to be balanced."""
        few = sizes.T <= FEW_TOKENS
        tiles = 1 if few else -(-sizes.T // TILE_TOKENS)
        if self._attends:
            spans = -(-sizes.context_tokens // (SPAN * max(1, sizes.B)))
            return self._attends * max(1, sizes.B) * spans * tiles
        if self._heads:
            return self._heads * tiles
        rows = UNIT_ROWS // 2 if few and self._rows < UNIT_ROWS * NARROW_UNITS else UNIT_ROWS
        return -(-self._rows // rows) * tiles

    def longest_over_mean(self, sizes: Sizes, threads: int) -> float:
        """The busiest thread's work over the mean, at least 1."""
        units = self.units(sizes)
        return -(-units // threads) * threads / units if units else 1.0

"""Which weights may differ among the sequences of a step: only those read by a matrix product that is its own kernel.

The weights that an adapter adds to its base are of this kind. Knows nothing about adapters, or about what is mixed.
"""

from __future__ import annotations

from collections.abc import Collection

from coterie.core.shapes import Sizes
from coterie.graph.fuse import KERNEL_SETS, fuse
from coterie.graph.program import Program
from coterie.graph.stored import value_bytes

PRODUCTS = ("linear", "linear_add")  # kernels that can use different weights for different rows
CACHE = "cache"
NO_STEP = Sizes(0, 0, 0, 0, 0)  # a weight's bytes are the same in every step


def mixes(program: Program, shared_places: Collection[int]) -> bool:
    """Whether all weights except `shared_places` (places in program.weights) may differ; False if none are left."""
    own = {name for place, name in enumerate(program.weights) if place not in set(shared_places)}
    # No real device has kernels for whole sections: it would fuse by its own rules.
    regions = program.regions if program.rule_set in KERNEL_SETS else fuse(program.graph, CACHE)
    for region in regions:
        products = {region.ops[0].inputs[1]} if region.kernel in PRODUCTS else set()
        read = [name for op in region.ops for name in op.inputs if name in own]
        if not products.issuperset(read) or len(set(read)) != len(read):
            return False
    return bool(own)


def own_bytes(program: Program, shared_places: Collection[int]) -> int:
    """Bytes of all weights other than `shared_places` (places in program.weights)."""
    values, kept = [program.graph.values[name] for name in program.weights], set(shared_places)
    return sum(value_bytes(value, NO_STEP) for place, value in enumerate(values) if place not in kept)

"""From a ModelConfig to its graph. The families themselves are rows of families.py.

Knows nothing about files or devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from coterie.core.dtypes import DType
from coterie.core.shapes import fixed
from coterie.graph.ir import Graph, GraphBuilder
from coterie.models.blocks import Decoder
from coterie.models.config import ModelConfig
from coterie.models.layered_blocks import LayeredDecoder

__all__ = ["decoder_graph", "weight_shapes"]


def decoder_graph(config: ModelConfig, dtypes: Mapping[str, DType], activations: DType = DType.F32) -> Graph:
    """The graph of one step. `dtypes` has the element type of every weight, by its name in the file.

    `activations` other than F32 are for modelled machines, which only count their bytes.
    """
    kind = LayeredDecoder if config.layered else Decoder
    return kind(config, dtypes, GraphBuilder(config.family), activations).build()


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, with its shape, in order of first use."""
    graph = decoder_graph(config, defaultdict(lambda: DType.F32))
    return {weight.name: fixed(weight.shape) for weight in graph.weights}

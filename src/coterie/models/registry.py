"""From a ModelConfig to its graph. The families are rows of a table in families/.

Knows nothing about files or devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from coterie.core.dtypes import DType
from coterie.core.shapes import fixed
from coterie.graph.ir import Graph, GraphBuilder
from coterie.graph.rows import seeing_all
from coterie.graph.vectors import vectors_graph
from coterie.models.blocks import Decoder
from coterie.models.config import ModelConfig
from coterie.models.encoder_blocks import EncoderBlocks
from coterie.models.layered_blocks import LayeredDecoder
from coterie.models.single_blocks import SingleDecoder

__all__ = ["decoder_graph", "weight_shapes"]


def decoder_graph(
    config: ModelConfig, dtypes: Mapping[str, DType], activations: DType = DType.F32, draws: bool = True
) -> Graph:
    """The graph of one step. `dtypes` has the element type of every weight, by its name in the file.

    `activations` other than F32 are for modelled machines, which only count their bytes. `draws` False: a step returns
    vectors instead of tokens, and there is no head.
    """
    others = Decoder if config.plain_layers is None else SingleDecoder
    behind = config.encoder is not None and config.encoder.norms_behind
    kind = EncoderBlocks if behind else LayeredDecoder if config.layered else others
    known = dtypes if draws else defaultdict(lambda: DType.F32, dtypes)
    graph = kind(config, known, GraphBuilder(config.family), activations).build()
    graph = graph if draws else vectors_graph(graph)
    return seeing_all(graph) if config.sees_all else graph


def weight_shapes(config: ModelConfig, draws: bool = True) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, with its shape, in order of first use; no head if `draws` is False."""
    graph = decoder_graph(config, defaultdict(lambda: DType.F32), draws=draws)
    return {weight.name: fixed(weight.shape) for weight in graph.weights}

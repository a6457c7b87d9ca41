"""From a ModelConfig to its graph. The families are rows of a table in families/.

Knows nothing about files or devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from coterie.core.dtypes import DType
from coterie.core.shapes import fixed
from coterie.graph.ir import Graph, GraphBuilder
from coterie.graph.rows import with_bidirectional_attention
from coterie.graph.vectors import vectors_graph
from coterie.models.blocks import Decoder
from coterie.models.config import ModelConfig
from coterie.models.encoder_blocks import EncoderBlocks
from coterie.models.layered_blocks import LayeredDecoder
from coterie.models.single_blocks import SingleDecoder

__all__ = ["decoder_graph", "weight_shapes"]


def decoder_graph(
    config: ModelConfig, dtypes: Mapping[str, DType], activations: DType = DType.F32, samples_tokens: bool = True
) -> Graph:
    """The graph of one step. `dtypes` has the element type of every weight, by its name in the file.

    `activations` other than F32 are for modelled machines, which only count their bytes. If `samples_tokens` is
    False, a step returns vectors instead of tokens, and there is no head.
    """
    plain = Decoder if config.plain_layers is None else SingleDecoder
    post_norm = config.encoder is not None and config.encoder.post_norm
    kind = EncoderBlocks if post_norm else LayeredDecoder if config.layered else plain
    known = dtypes if samples_tokens else defaultdict(lambda: DType.F32, dtypes)
    graph = kind(config, known, GraphBuilder(config.family), activations).build()
    graph = graph if samples_tokens else vectors_graph(graph)
    return with_bidirectional_attention(graph) if config.bidirectional else graph


def weight_shapes(config: ModelConfig, samples_tokens: bool = True) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, with its shape, in order of first use; no head unless `samples_tokens`."""
    graph = decoder_graph(config, defaultdict(lambda: DType.F32), samples_tokens=samples_tokens)
    return {weight.name: fixed(weight.shape) for weight in graph.weights}

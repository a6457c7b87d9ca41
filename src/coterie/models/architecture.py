"""What experts of one architecture share, computed once for all of them: graph, key, KV state, order of weights.

A real model's graph takes milliseconds and a megabyte; hundreds of fine-tunes share one. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from coterie.core.dtypes import DType
from coterie.core.lru_cache import LruCache
from coterie.graph.compile import kv_shape
from coterie.graph.ir import Graph
from coterie.graph.program import KvShape, architecture_key
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph, weight_shapes

_KEPT = 64  # cached architectures; models also keep theirs alive


@dataclass(frozen=True, slots=True)
class Architecture:
    """A graph and what is derived from it alone. `weight_stage`: weight name -> the first stage that needs it."""

    graph: Graph
    key: str
    kv: KvShape
    stages: tuple[str, ...]
    weight_stage: Mapping[str, str]

    @staticmethod
    def of(graph: Graph) -> Architecture:
        """The architecture of a graph."""
        stage_of = MappingProxyType(graph.weight_stage())
        return Architecture(graph, architecture_key(graph), kv_shape(graph), graph.stages, stage_of)

    def stages_reading_whole(self, table: str) -> tuple[str, ...]:
        """The stages that read an embedding table other than by looking up rows: a tied head, for instance."""
        return tuple(dict.fromkeys(op.stage for op in self.graph.ops if table in op.inputs and op.kind != "embed"))


_KNOWN: LruCache[Architecture] = LruCache(_KEPT)


def architecture(
    config: ModelConfig, dtypes: Mapping[str, DType], activations: DType = DType.F32, has_head: bool = True
) -> Architecture:
    """The architecture of a config with weights of these types. Equal architectures are one object."""
    key = config, tuple(dtypes.items()), activations, has_head
    return shared(key, lambda: decoder_graph(config, dtypes, activations, has_head))


def shared(key: Hashable, make: Callable[[], Graph]) -> Architecture:
    """The cached architecture for `key`. The graph that `make` builds must depend on `key` alone."""
    return _KNOWN.get(key, lambda: Architecture.of(make()))


@lru_cache(_KEPT)
def shapes_of(config: ModelConfig, has_head: bool = True) -> Mapping[str, tuple[int, ...]]:
    """Every tensor that a model needs, with its shape, in order of first use (registry.weight_shapes)."""
    return MappingProxyType(weight_shapes(config, has_head))

"""What a row of the architectures of GGUF is, and what it may ask of a file.

Knows nothing about any architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.models.fields import Fields
from coterie.models.gguf.file import GgufTensor

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
LOCAL_THETA = "rope.freq_base_swa"
COUNT, TAKEN, WIDTH = "expert_count", "expert_used_count", "expert_feed_forward_length"  # of branches


@dataclass(frozen=True, slots=True)
class Source:
    """What `own` may ask: the file's keys without the architecture before them, the model's sizes, the tensors."""

    keys: Fields
    num_layers: int
    num_heads: int
    hidden_size: int
    head_dim: int
    tensors: Mapping[str, GgufTensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row: the family by its model_type, whether rows of q and k are permuted, keys of its own.

    `reads`: keys of the file that mean something to `own`, and are refused for others. `single` gives keys one value
    each where the file has one for each layer, and reads the factors of the rope.
    """

    model_type: str
    permuted: bool = False
    own: Callable[[Source], dict[str, Any]] = lambda _: {}
    reads: tuple[str, ...] = ()
    single: Callable[[Mapping[str, Any], Mapping[str, GgufTensor], str], dict[str, Any]] | None = None

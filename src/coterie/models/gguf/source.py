"""The type of a row in the table of GGUF architectures, and the view of a file that it is given.

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
COUNT, TAKEN, WIDTH = "expert_count", "expert_used_count", "expert_feed_forward_length"  # keys of branches


@dataclass(frozen=True, slots=True)
class Source:
    """The argument of `own`: the file's keys without the architecture's prefix, the model's sizes, the tensors."""

    keys: Fields
    num_layers: int
    num_heads: int
    hidden_size: int
    head_dim: int
    tensors: Mapping[str, GgufTensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row: the family's model_type, whether rows of q and k are permuted, and `own`, which returns config.json keys.

    `reads`: keys of the file that `own` uses; for other architectures they are refused. `reduce_keys`: reduces keys
    with a value per layer to one value each, and may derive further keys from the tensors.
    """

    model_type: str
    permuted: bool = False
    own: Callable[[Source], dict[str, Any]] = lambda _: {}
    reads: tuple[str, ...] = ()
    reduce_keys: Callable[[Mapping[str, Any], Mapping[str, GgufTensor], str], dict[str, Any]] | None = None

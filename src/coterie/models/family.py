"""What makes one family of decoders differ from another: flags, and the defaults for keys that a config may leave out.

Knows nothing about any particular family.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Window(Enum):
    """Which layers attend within a sliding window."""

    NEVER = "never"
    EVERY_LAYER = "every layer"  # whenever `sliding_window` is a number
    BY_LAYER = "by layer"  # `use_sliding_window` with `layer_types`, or from `max_window_layers` on


class Bias(Enum):
    """Whether a projection adds a bias."""

    NEVER = "never"
    ALWAYS = "always"
    BY_CONFIG = "by config"  # `attention_bias`, `mlp_bias`


@dataclass(frozen=True, slots=True)
class Family:
    """A row of the registry. Defaults are those of the family's config class in Hugging Face transformers.

    `num_kv_heads` None means as many as query heads; `head_dim` None means hidden_size / num_heads.
    """

    model_type: str
    causal_class: str
    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: Bias = Bias.NEVER
    o_bias: Bias = Bias.NEVER
    mlp_bias: Bias = Bias.NEVER
    qk_norm: bool = False
    window: Window = Window.NEVER
    window_tokens: int = 4096

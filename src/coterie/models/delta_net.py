"""Config of gated delta nets: which layers they are, and their sizes. What they compute is in graph/delta_net/ops.py.

Knows nothing about graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.errors import UnsupportedError
from coterie.models.family import FULL, LINEAR
from coterie.models.fields import Fields

INTERVAL = 4  # default of `full_attention_interval`: every fourth layer is attention


@dataclass(frozen=True, slots=True)
class DeltaNames:
    """Tensor names of a layer; projections and the norm omit `.weight`."""

    qkv: str = "linear_attn.in_proj_qkv"
    qkvz: str = "linear_attn.in_proj_qkvz"  # grouped by key head: its q and k, v and z of its value heads
    ba: str = "linear_attn.in_proj_ba"  # grouped by key head: b and a of its value heads
    z: str = "linear_attn.in_proj_z"
    a: str = "linear_attn.in_proj_a"
    b: str = "linear_attn.in_proj_b"
    conv: str = "linear_attn.conv1d.weight"
    a_log: str = "linear_attn.A_log"
    dt_bias: str = "linear_attn.dt_bias"
    norm: str = "linear_attn.norm"
    out: str = "linear_attn.out_proj"


DELTA_NAMES = DeltaNames()


@dataclass(frozen=True, slots=True)
class DeltaNets:
    """The layers that are gated delta nets, and the heads and channels of each. `taps`: of the convolution.

    `by_key_heads`: there are two input projections, whose rows are grouped by key head.
    """

    layers: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    by_key_heads: bool = False
    names: DeltaNames = DELTA_NAMES

    @property
    def channels(self) -> int:
        """Channels of the convolution: q, k and v."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


def layers_of_kind(config: Fields, kind: str, usual: Sequence[str]) -> tuple[int, ...]:
    """The layers of type `kind` in a model whose others are attention; `usual`: default of `layer_types`.

    Raises CheckpointError, and UnsupportedError if all layers are alike.
    """
    types = config.layer_kinds("layer_types", len(usual), (FULL, kind), usual)
    if set(types) != {FULL, kind}:
        fact = f"all of its {len(types)} layers are {types[0]}"
        raise UnsupportedError(config.where, fact, f"use a model that has {FULL} and {kind}")
    return tuple(layer for layer, of_layer in enumerate(types) if of_layer == kind)


def delta_nets_of(config: Fields, num_layers: int, by_key_heads: bool = False) -> DeltaNets:
    """Read the keys of Qwen3.5 with its defaults. Raises CheckpointError, UnsupportedError."""
    every = 1 if config.get("layer_types") else config.count("full_attention_interval", INTERVAL)
    usual = [FULL if (layer + 1) % every == 0 else LINEAR for layer in range(num_layers)]
    found = DeltaNets(
        layers_of_kind(config, LINEAR, usual),
        config.count("linear_num_key_heads", 16),
        config.count("linear_num_value_heads", 32),
        config.count("linear_key_head_dim", 128),
        config.count("linear_value_head_dim", 128),
        config.count("linear_conv_kernel_dim", 4),
        by_key_heads,
    )
    if found.value_heads % found.key_heads:
        wanted = f"a multiple of the {found.key_heads} key heads"
        raise config.wrong("linear_num_value_heads", f"is {found.value_heads}", wanted)
    if not 1 < found.taps <= found.key_dim * found.value_dim:
        wanted = f"from 2 to {found.key_dim * found.value_dim}"
        raise config.wrong("linear_conv_kernel_dim", f"is {found.taps}", wanted)
    return found

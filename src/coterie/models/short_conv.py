"""Config of short convolutions: which layers have one instead of attention, and its number of taps.

    y = out(after * conv(before * x)), where before, after and x are projections of the layer's input

Knows nothing about graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.models.delta_net import layers_of_kind
from coterie.models.family import FULL
from coterie.models.fields import Fields

CONV = "conv"  # layer type
ATTENDING = "full_attn_idxs"


@dataclass(frozen=True, slots=True)
class ConvNames:
    """Tensor names of a layer; projections omit `.weight`. `joined`: the three input projections in one matrix."""

    before: str = "conv.in_before"
    after: str = "conv.in_after"
    x: str = "conv.in_x"
    joined: str = "conv.in_proj"
    conv: str = "conv.conv.weight"
    out: str = "conv.out_proj"


CONV_NAMES = ConvNames()


@dataclass(frozen=True, slots=True)
class ShortConvs:
    """The layers that have such a convolution, of `taps` taps, over all channels."""

    layers: tuple[int, ...]
    taps: int
    names: ConvNames = CONV_NAMES


def short_convs_of(config: Fields, num_layers: int) -> ShortConvs:
    """Read the keys of LFM2 with its defaults. Raises CheckpointError, UnsupportedError."""
    everywhere = range(num_layers)
    attending = everywhere if config.get("layer_types") else config.layer_numbers(ATTENDING, everywhere)
    layers = layers_of_kind(config, CONV, [FULL if layer in attending else CONV for layer in everywhere])
    taps = config.count("conv_L_cache", 3)
    if taps < 2:
        raise config.wrong("conv_L_cache", f"is {taps}", "at least 2")
    return ShortConvs(layers, taps)


def inner_in_blocks(config: Fields) -> int:
    """The width of LFM2's feed-forward block: by default two thirds of the config's, rounded up to whole blocks.

    Raises CheckpointError.
    """
    key = "block_ff_dim" if config.get("block_ff_dim") is not None else "intermediate_size"
    width = config.count(key)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if "block_ffn_dim_multiplier" not in config.raw or config.get("block_ffn_dim_multiplier") is not None:
        block = config.count("block_multiple_of", 256)
        width = -(-int(config.number("block_ffn_dim_multiplier", 1.0) * width) // block) * block
    return width

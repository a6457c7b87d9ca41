"""Config of layers that differ (Gemma 4): in head shape, in whose keys and values they read, and per-layer inputs.

Knows nothing about graphs (layered_blocks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

FULL_HEAD_DIM = 512  # default for layers without a window
OWN_CONFIG = "per_layer_config"  # key of newer configs for layers with other heads, by layer index


@dataclass(frozen=True, slots=True)
class LayeredNames:
    """Tensor names specific to such layers; those of a layer follow its prefix, projections and norms omit `.weight`.

    `chooser_scale`: weight of the norm on the chooser's input.
    """

    input_table: str = "model.embed_tokens_per_layer.weight"
    input_projection: str = "model.per_layer_model_projection"
    input_norm: str = "model.per_layer_projection_norm"
    gate: str = "per_layer_input_gate"
    out: str = "per_layer_projection"
    out_norm: str = "post_per_layer_input_norm"
    scalar: str = "layer_scalar"
    block_norm: str = "post_feedforward_layernorm_1"  # after the plain block, if branches run in parallel with it
    branches_norm: str = "pre_feedforward_layernorm_2"
    branches_out_norm: str = "post_feedforward_layernorm_2"
    chooser_scale: str = "router.scale"


LAYERED_NAMES = LayeredNames()


@dataclass(frozen=True, slots=True)
class Layered:
    """What differs from layer to layer. Layers with a window have the heads of the config itself.

    `full_heads` and `full_dim`: key/value heads and channels of layers without a window; `keys_are_values`: these have
    no value projection. From layer `first_shared` on, a layer reads the keys and values of the last earlier layer of
    its type (with or without a window), and its plain block is `shared_width` wide. `inputs`: channels of each layer's
    own input per token, from a table of `input_rows`; 0 for none.
    """

    full_heads: int
    full_dim: int
    keys_are_values: bool
    first_shared: int
    shared_width: int
    inputs: int
    input_rows: int
    names: LayeredNames = LAYERED_NAMES

    def kv_source_layer(self, layer: int, windows: Sequence[int]) -> int:
        """The layer whose keys and values a layer reads."""
        if layer < self.first_shared:
            return layer
        alike = (other for other in range(self.first_shared) if bool(windows[other]) == bool(windows[layer]))
        return max(alike)


def layered_of(config: Fields, windows: Sequence[int], inputs: int) -> Layered:
    """Read the keys of Gemma 4; `inputs`: default of hidden_size_per_layer_input.

    Raises CheckpointError, UnsupportedError.
    """
    if config.get("use_bidirectional_attention") not in (None, "vision"):
        fact = f"use_bidirectional_attention = {config.get('use_bidirectional_attention')!r} is not supported"
        raise UnsupportedError(config.where, fact, "use a model whose text attends to what is before it")
    shared, width = config.whole("num_kv_shared_layers", 0), config.count("intermediate_size")
    first = len(windows) - shared
    if {bool(window) for window in windows[max(0, first) :]} - {bool(window) for window in windows[: max(0, first)]}:
        wanted = f"so few of the {len(windows)} layers that one of each type has keys and values of its own"
        raise config.wrong("num_kv_shared_layers", f"is {shared}", wanted)
    keys_are_values = config.flag("attention_k_eq_v")
    full_heads, full_dim = _full_heads(config, windows, keys_are_values)
    if config.count("num_attention_heads") % full_heads or full_dim % 2:
        fact = f"layers without a window have {full_heads} key/value heads of {full_dim} channels"
        wanted = f"a divisor of the {config.count('num_attention_heads')} attention heads, and an even number"
        raise UnsupportedError(config.where, fact, f"use {wanted}")
    rows, vocab = config.count("vocab_size_per_layer_input", config.count("vocab_size")), config.count("vocab_size")
    if rows < vocab:  # tokens are looked up in both tables
        raise config.wrong("vocab_size_per_layer_input", f"is {rows}", f"at least vocab_size {vocab}")
    return Layered(
        full_heads=full_heads,
        full_dim=full_dim,
        keys_are_values=keys_are_values,
        first_shared=first,
        shared_width=width * (2 if config.flag("use_double_wide_mlp") else 1),
        inputs=config.whole("hidden_size_per_layer_input", inputs),
        input_rows=rows,
    )


def _full_heads(config: Fields, windows: Sequence[int], keys_are_values: bool) -> tuple[int, int]:
    """Key/value heads and channels of layers without a window, from a config of the released or the newer form."""
    usual, usual_dim = config.count("num_key_value_heads"), config.count("head_dim")
    own = config.section(OWN_CONFIG)
    if own is None:
        full = config.count("num_global_key_value_heads", usual) if keys_are_values else usual
        return full, config.count("global_head_dim", FULL_HEAD_DIM)
    by_layer = [own.section(str(layer)) or Fields({}, own.where) for layer in range(len(windows))]
    odd = sorted({key for found in by_layer for key in found.raw} - {"head_dim", "num_key_value_heads"})
    heads = [(found.count("num_key_value_heads", usual), found.count("head_dim", usual_dim)) for found in by_layer]
    full_heads = {found for found, window in zip(heads, windows, strict=True) if not window}
    others = {found for found, window in zip(heads, windows, strict=True) if window} - {(usual, usual_dim)}
    if odd or others or len(full_heads) > 1:
        fact = f"{OWN_CONFIG} gives {', '.join(odd) or 'layers of one type different heads'}, which is not supported"
        raise UnsupportedError(own.where, fact, "use a model whose layers differ by their window alone")
    return full_heads.pop() if full_heads else (usual, usual_dim)

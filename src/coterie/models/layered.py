"""Layers that differ from one another (Gemma 4): their heads, whose keys and values they read, inputs of their own.

Knows nothing about graphs (layered_blocks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

FULL_HEAD_DIM = 512  # of layers without a window, where the config does not say it
OWN_CONFIG = "per_layer_config"  # what newer configs have for layers of other heads, by their numbers


@dataclass(frozen=True, slots=True)
class LayeredNames:
    """Tensors of what layers have of their own; a layer's behind its prefix, projections and norms without `.weight`.

    `chooser_scale`: by which the chooser's input is multiplied where it is normed.
    """

    input_table: str = "model.embed_tokens_per_layer.weight"
    input_projection: str = "model.per_layer_model_projection"
    input_norm: str = "model.per_layer_projection_norm"
    gate: str = "per_layer_input_gate"
    out: str = "per_layer_projection"
    out_norm: str = "post_per_layer_input_norm"
    scalar: str = "layer_scalar"
    block_norm: str = "post_feedforward_layernorm_1"  # behind the plain block, where branches stand beside it
    branches_norm: str = "pre_feedforward_layernorm_2"
    branches_out_norm: str = "post_feedforward_layernorm_2"
    chooser_scale: str = "router.scale"


LAYERED_NAMES = LayeredNames()


@dataclass(frozen=True, slots=True)
class Layered:
    """What differs from layer to layer. Layers with a window have the heads of the config itself.

    `full_heads` and `full_dim`: heads of keys and values, and channels, of layers without one; `keys_are_values`: these
    have no projection of values. From layer `first_shared` on, layers read the keys and values of the last one before
    it with a window as they have it, and their plain block is `shared_width` wide. `inputs`: channels of the input that
    each layer has of each token, from a table of `input_rows`; 0 for none.
    """

    full_heads: int
    full_dim: int
    keys_are_values: bool
    first_shared: int
    shared_width: int
    inputs: int
    input_rows: int
    names: LayeredNames = LAYERED_NAMES

    def source(self, layer: int, windows: Sequence[int]) -> int:
        """The layer whose keys and values a layer reads."""
        if layer < self.first_shared:
            return layer
        alike = (other for other in range(self.first_shared) if bool(windows[other]) == bool(windows[layer]))
        return max(alike)


def layered_of(config: Fields, windows: Sequence[int], inputs: int) -> Layered:
    """Read the keys of Gemma 4; `inputs`: of a config that does not say how many.

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
    if rows < vocab:  # the same tokens are looked up there
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
    """Heads and channels of layers without a window, from the keys of a released config or of a newer one."""
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

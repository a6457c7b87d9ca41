"""What makes one family of models differ from another: flags, and the defaults for keys that a config may leave out.

Knows nothing about any particular family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from coterie.models.branches import BranchKeys
from coterie.models.encoder import EncoderKeys
from coterie.models.latent import LatentKeys
from coterie.models.state_space import ScanKeys

FULL, SLIDING = "full_attention", "sliding_attention"  # types of layers, without and with a window
FIXED_NTK = "fixed_ntk"  # a kind of rope
LINEAR = "linear_attention"  # a layer that keeps a state of one size


class Window(Enum):
    """Which layers attend within a sliding window."""

    NEVER = "never"
    EVERY_LAYER = "every layer"  # whenever `sliding_window` is a number
    BY_LAYER = "by layer"  # `use_sliding_window` with `layer_types`, or from `max_window_layers` on
    WITHOUT_ROPE = "layers without rope"  # `use_sliding_window` with `layer_types`, or those layers
    BY_TYPES = "by types"  # `layer_types`, or all layers
    FROM_LAYER = "from a layer on"  # `layer_types`, or from `max_window_layers` on
    BY_PATTERN = "by pattern"  # `layer_types`, or all layers but each `window_pattern`-th


class Bias(Enum):
    """Whether a projection adds a bias."""

    NEVER = "never"
    ALWAYS = "always"
    BY_CONFIG = "by config"  # `attention_bias`, `mlp_bias`
    UNLESS_OFF = "unless the config says no"  # by the same keys


class Norm(Enum):
    """Which norms there are; the value is their op."""

    RMS = "rms_norm"
    LAYER = "layer_norm"


class FeedForward(Enum):
    """What lies between the projections of the feed-forward block."""

    GATED_SILU = "silu(gate) * up"
    GATED_GELU = "gelu(gate) * up"  # Phi by erf
    GATED_GELU_TANH = "gelu(gate) * up, Phi by tanh"
    GELU = "erf"  # one projection up, then gelu in this form
    GELU_TANH = "tanh"
    RELU = "relu"
    RELU_SQUARED = "relu_squared"
    XIELU = "xielu"  # with four numbers of its own in each layer

    @property
    def is_gated(self) -> bool:
        """Whether there are two projections up, of which one gates the other."""
        return self in (FeedForward.GATED_SILU, FeedForward.GATED_GELU, FeedForward.GATED_GELU_TANH)

    @property
    def gelu_form(self) -> str:
        """The form of its gelu, as the op has it."""
        return {FeedForward.GATED_GELU: "erf", FeedForward.GATED_GELU_TANH: "tanh"}.get(self, self.value)


@dataclass(frozen=True, slots=True)
class Names:
    """Tensors by their names in the file: a layer's behind `layer`; projections and norms without `.weight`."""

    embed: str = "model.embed_tokens.weight"
    embed_norm: str = ""
    positions: str = ""  # a table of learned positions
    types: str = ""  # a table of which text of a pair a token is of
    distances: str = ""  # a table of biases of attention by distance, one for all layers
    layer: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"  # before attention; empty where none stands there
    attention_out_norm: str = ""  # behind attention, before the residual is added
    feed_forward_norm: str = "post_attention_layernorm"
    feed_forward_out_norm: str = ""
    shared_norm: str = ""  # where one norm stands before both blocks
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    qkv: str = ""  # one projection, its heads in groups: the query heads that share a key head, that head, its value
    sinks: str = ""  # a number for each query head
    o: str = "self_attn.o_proj"
    attention_gate: str = ""  # a projection whose sigmoid multiplies what attends
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    xielu: str = "mlp.act_fn."  # how the names of its four numbers begin, where the block has it
    norm: str = "model.norm"
    head: str = "lm_head.weight"
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)  # a stored matrix -> its rows
    stored: tuple[tuple[str, str], ...] = ()  # how names begin in files, and how they do here, one change after another
    unread: tuple[str, ...] = ()  # how the names of tensors begin that are no part of the model that is run

    @property
    def tables(self) -> tuple[str, ...]:
        """Those of which rows are looked up."""
        return tuple(name for name in (self.embed, self.positions, self.types) if name)


NAMES = Names()  # of Llama and whatever is built like it


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
    down_bias: bool = False  # of the last product of a feed-forward block, where the others have none
    head_bias: Bias = Bias.NEVER  # of the logits, by `head_bias`
    qk_norm: bool = False
    qk_norm_key: str = ""  # of the config, where it says whether there are such norms
    normed_behind_rope: bool = False  # queries and keys, where there are such norms
    heads_normed_together: bool = False  # those of q, and those of k, where there are such norms
    window: Window = Window.NEVER
    window_tokens: int | None = 4096  # where the key is absent; None for no window
    both_sides_key: str = ""  # of the config, for the tokens of a window that reaches both ways, both sides together
    window_from: int = 28  # the first layer with a window, where `max_window_layers` is absent; as of both Qwen classes
    window_pattern: int = 0
    pattern_first: int = 1  # the number of the first layer in that count: each that the pattern divides has no window
    pattern_key: str = ""  # of the config, where it may say otherwise
    rope_by_window: bool = False  # layers with a window rotate by angles of their own
    local_rope_theta: float = 10_000.0  # of layers with a window, where these have angles of their own
    local_rope_key: str = ""  # an older key for it
    norm: Norm = Norm.RMS
    norm_bias: bool = True  # of layer norms
    norm_offset: float = 0.0  # added to the weights of all norms
    norm_eps: float = 1e-6
    feed_forward: FeedForward = FeedForward.GATED_SILU
    inner_key: str = "intermediate_size"  # the width between its projections
    inner_in_blocks: bool = False  # that width is made of what the config says: a part of it, rounded up to blocks
    feed_forwards: Mapping[str, FeedForward] = field(default_factory=dict)  # by `activation_key`, where it decides
    activation_key: str = "activation_function"
    embeds_by_width: bool = False  # rows of the embedding times sqrt(hidden_size), rounded to the embedding's type
    embeds_by_width_key: str = ""  # a flag by which they are, and not rounded
    attention_scalar: int = 0  # queries are scaled by `query_pre_attn_scalar` ** -0.5, by default this; 0: by head_dim
    attention_cap: float = 0.0  # `attn_logit_softcapping` where the key is absent; 0: none
    logits_factor: float = 0.0  # `logit_scale` where the key is absent; 0: none
    logits_cap: float = 0.0  # `final_logit_softcapping` where the key is absent
    runs: tuple[str, ...] = ()  # keys that mean something to this family and are refused for the others
    position_offset: int = 0  # rows of the table of learned positions before the first position's
    alibi: bool = False
    parallel_norms: int = 0  # attention and feed-forward side by side behind one norm or two; 0: one after the other
    parallel_key: str = ""  # a flag by which they stand side by side behind one norm
    tied_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_kinds: Mapping[str, str] = field(default_factory=dict)  # other names that this family has for a kind of rope
    partial_rope: bool = False  # `partial_rotary_factor` may be below 1
    rotated_part: float = 1.0  # where that key is absent
    rotated_key: str = ""  # an older key, for how many channels are
    default_rope: Mapping[str, Any] = field(default_factory=dict)  # where the config describes none
    rope_alpha: bool = False  # a dynamic rope with `alpha` is one of a longer period, everywhere
    queries_grow: bool = False  # with their position, where the rope says so
    rope_interleaved: bool = False  # pairs of channels are neighbours, not halves
    interleaved_key: str = ""  # of the config, where it may say otherwise
    original_positions: int | None = None  # trained length where only the rope's section says it, or nothing does
    full_layers_rotate: bool = True  # where others have a window, those that see all do too
    rope_key: str = ""  # a key that says "rope" where layers rotate; without one all do
    no_rope_interval: int = 0  # every so many layers one does not rotate, unless `no_rope_layers` says otherwise
    branches: BranchKeys | None = None
    latent: LatentKeys | None = None  # attention is latent
    layered: bool = False  # layers differ in their heads, and have inputs and a factor of their own
    layer_inputs: int = 0  # channels of such an input, where `hidden_size_per_layer_input` is absent
    delta_nets: bool = False  # some layers are, instead of attending
    nets_by_key_heads: bool = False  # two projections into a net, whose numbers lie by key heads
    short_convs: bool = False  # some layers have one, instead of attending
    state_spaces: ScanKeys | None = None  # layers have one, instead of attending or beside it
    single_blocks: bool = False  # each layer is a single block: attention, its like, or a feed-forward block
    factors: bool = False  # products are multiplied by factors of their own
    gated_attention: bool = False  # what attends is multiplied by sigmoid of a gate, each head's behind its query
    layers_behind_key: str = ""  # how many layers a file holds behind all others, of which no step is made
    sees_all_key: str = ""  # a flag by which tokens see those behind them too, for vectors alone
    encoder: EncoderKeys | None = None  # its tokens see all of their text, and it draws none
    modelled_only: bool = False  # real devices lack kernels for some of its ops
    names: Names = NAMES
    keys: Mapping[str, str] = field(default_factory=dict)  # the usual key -> this family's
    usual_first: tuple[str, ...] = ()  # usual keys that count where a config has the family's own, too
    given: tuple[str, ...] = ()  # keys that mean what is not supported where they are left out
    required: Mapping[str, bool] = field(default_factory=dict)  # flags of the config that have one value only
    same_as_hidden: tuple[str, ...] = ()  # sizes that are run only where they are hidden_size

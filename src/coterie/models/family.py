"""What distinguishes one family of models from another: flags, and the defaults of optional config keys.

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

FULL, SLIDING = "full_attention", "sliding_attention"  # layer types: without and with a window
FIXED_NTK = "fixed_ntk"  # a rope type (rope.py)
LINEAR = "linear_attention"  # a layer type with a state of fixed size


class Window(Enum):
    """Which layers attend within a sliding window."""

    NEVER = "never"
    EVERY_LAYER = "every layer"  # whenever `sliding_window` is a number
    BY_LAYER = "by layer"  # `use_sliding_window` and: `layer_types`, else layers from `max_window_layers` on
    WITHOUT_ROPE = "layers without rope"  # `use_sliding_window` and: `layer_types`, else layers without rope
    BY_TYPES = "by types"  # `layer_types`, else all layers
    FROM_LAYER = "from a layer on"  # `layer_types`, else layers from `max_window_layers` on
    BY_PATTERN = "by pattern"  # `layer_types`, else all layers except every `window_pattern`-th


class Bias(Enum):
    """Whether a projection adds a bias."""

    NEVER = "never"
    ALWAYS = "always"
    BY_CONFIG = "by config"  # keys `attention_bias`, `mlp_bias`, by default false
    UNLESS_OFF = "unless the config says no"  # the same keys, by default true


class Norm(Enum):
    """The kinds of norm; the value is the op."""

    RMS = "rms_norm"
    LAYER = "layer_norm"


class FeedForward(Enum):
    """The activation between the projections of the feed-forward block."""

    GATED_SILU = "silu(gate) * up"
    GATED_GELU = "gelu(gate) * up"  # Phi by erf
    GATED_GELU_TANH = "gelu(gate) * up, Phi by tanh"
    GELU = "erf"  # one projection up, then gelu in this form
    GELU_TANH = "tanh"
    RELU = "relu"
    RELU_SQUARED = "relu_squared"
    XIELU = "xielu"  # with four parameters per layer

    @property
    def is_gated(self) -> bool:
        """Whether there are two up projections, one of which gates the other."""
        return self in (FeedForward.GATED_SILU, FeedForward.GATED_GELU, FeedForward.GATED_GELU_TANH)

    @property
    def gelu_form(self) -> str:
        """The `form` attribute of its gelu op."""
        return {FeedForward.GATED_GELU: "erf", FeedForward.GATED_GELU_TANH: "tanh"}.get(self, self.value)


@dataclass(frozen=True, slots=True)
class Names:
    """Tensor names in the file: those of a layer follow the prefix `layer`; projections and norms omit `.weight`."""

    embed: str = "model.embed_tokens.weight"
    embed_norm: str = ""
    positions: str = ""  # a table of learned positions
    types: str = ""  # a table of token types (which text of a pair)
    distances: str = ""  # a table of attention biases by distance, shared by all layers
    layer: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"  # before attention; empty if there is none
    attention_out_norm: str = ""  # after attention, before the residual is added
    feed_forward_norm: str = "post_attention_layernorm"
    feed_forward_out_norm: str = ""
    shared_norm: str = ""  # a single norm before both blocks
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    qkv: str = ""  # one fused projection, heads in groups: query heads that share a key head, that key head, its value
    sinks: str = ""  # attention sinks, a number per query head
    o: str = "self_attn.o_proj"
    attention_gate: str = ""  # a projection whose sigmoid multiplies the attention output
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    xielu: str = "mlp.act_fn."  # prefix of its four parameters
    norm: str = "model.norm"
    head: str = "lm_head.weight"
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)  # fused matrix -> its parts
    stored: tuple[tuple[str, str], ...] = ()  # (prefix in files, prefix here), applied one after another
    unread: tuple[str, ...] = ()  # prefixes of tensors that are not part of the model as it is run

    @property
    def tables(self) -> tuple[str, ...]:
        """The embedding tables: those whose rows are looked up."""
        return tuple(name for name in (self.embed, self.positions, self.types) if name)


NAMES = Names()  # those of Llama and similar models


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
    down_bias: bool = False  # of the down projection alone
    head_bias: Bias = Bias.NEVER  # of the logits; config key `head_bias`
    qk_norm: bool = False  # queries and keys are normed
    qk_norm_key: str = ""  # config key that decides it
    qk_norm_after_rope: bool = False  # that norm comes after rope, not before
    qk_norm_all_heads: bool = False  # that norm is over all heads of q, and of k, not over each head
    window: Window = Window.NEVER
    window_tokens: int | None = 4096  # default of `sliding_window`; None for no window
    both_sides_key: str = ""  # config key for the length of a bidirectional window, both sides together
    window_from: int = 28  # default of `max_window_layers`, the first layer with a window; as in both Qwen classes
    window_pattern: int = 0
    pattern_first: int = 1  # number of the first layer; layers whose number the pattern divides have no window
    pattern_key: str = ""  # config key for `window_pattern`
    rope_by_window: bool = False  # layers with a window have a rope of their own
    local_rope_theta: float = 10_000.0  # theta of that rope
    local_rope_key: str = ""  # an older key for it
    norm: Norm = Norm.RMS
    norm_bias: bool = True  # of layer norms
    norm_offset: float = 0.0  # added to the weights of all norms
    norm_eps: float = 1e-6
    feed_forward: FeedForward = FeedForward.GATED_SILU
    inner_key: str = "intermediate_size"  # config key for the width of the feed-forward block
    inner_in_blocks: bool = False  # that width is derived: a fraction of the key's, rounded up to blocks
    feed_forwards: Mapping[str, FeedForward] = field(default_factory=dict)  # allowed values of `activation_key`
    activation_key: str = "activation_function"
    scaled_embeddings: bool = False  # embeddings are multiplied by sqrt(hidden_size), rounded to the embedding's type
    scaled_embeddings_key: str = ""  # config flag for the same, without rounding
    attention_scalar: int = 0  # default of `query_pre_attn_scalar`, whose ** -0.5 scales queries; 0: head_dim does
    attention_cap: float = 0.0  # default of `attn_logit_softcapping`; 0: none
    logits_factor: float = 0.0  # default of `logit_scale`; 0: none
    logits_cap: float = 0.0  # default of `final_logit_softcapping`
    supported_keys: tuple[str, ...] = ()  # keys that this family supports and that are refused for others
    position_offset: int = 0  # rows of the table of learned positions that precede position 0
    alibi: bool = False
    parallel_norms: int = 0  # attention and feed-forward in parallel, after one norm or two; 0: one after the other
    parallel_key: str = ""  # config flag for parallel blocks after one norm
    tied_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_kinds: Mapping[str, str] = field(default_factory=dict)  # this family's names for kinds of rope
    partial_rope: bool = False  # `partial_rotary_factor` may be below 1
    rotated_fraction: float = 1.0  # default of `partial_rotary_factor`
    rotated_key: str = ""  # an older key, for the number of rotated channels
    default_rope: Mapping[str, Any] = field(default_factory=dict)  # rope section if the config has none
    rope_alpha: bool = False  # a dynamic rope with `alpha` has a larger theta, at all lengths
    queries_grow: bool = False  # queries may grow with their position, if the rope section says so
    rope_interleaved: bool = False  # rope pairs adjacent channels, not those of the two halves
    interleaved_key: str = ""  # config key that decides it
    original_positions: int | None = None  # trained length if only the rope section gives it, or nothing does
    full_layers_rotate: bool = True  # layers without a window have rope even if others have a window
    rope_key: str = ""  # config key that is "rope" if layers have rope; without such a key all do
    no_rope_interval: int = 0  # default of `no_rope_layer_interval`: every n-th layer has no rope; 0: all have
    branches: BranchKeys | None = None
    latent: LatentKeys | None = None  # attention is latent
    per_layer_heads: bool = False  # head shapes differ between layers, which also have inputs and a scalar of their own
    layer_inputs: int = 0  # default of `hidden_size_per_layer_input`, the channels of such an input
    delta_nets: bool = False  # some layers are delta nets instead of attention
    nets_by_key_heads: bool = False  # a delta net has two input projections, grouped by key head
    short_convs: bool = False  # some layers are short convolutions instead of attention
    state_spaces: ScanKeys | None = None  # layers have a state space, instead of attention or parallel to it
    single_blocks: bool = False  # each layer is a single block: a token mixer or a feed-forward block
    has_factors: bool = False  # some products have factors of their own (factors.py)
    gated_attention: bool = False  # attention output times sigmoid(gate); each head's gate follows its query
    extra_layers_key: str = ""  # config key for the number of extra layers at the end of a file, which are never run
    bidirectional_key: str = ""  # config flag for bidirectional attention, for vectors only
    encoder: EncoderKeys | None = None  # an encoder: bidirectional attention, no sampling
    modelled_only: bool = False  # real devices lack kernels for some of its ops
    names: Names = NAMES
    keys: Mapping[str, str] = field(default_factory=dict)  # the usual key -> this family's
    usual_first: tuple[str, ...] = ()  # usual keys that win over the family's own if a config has both
    mandatory_keys: tuple[str, ...] = ()  # keys that must be present, since their default is not supported
    required: Mapping[str, bool] = field(default_factory=dict)  # flags of which only this value is supported
    same_as_hidden: tuple[str, ...] = ()  # sizes that must equal hidden_size

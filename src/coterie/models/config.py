"""ModelConfig: one model's numbers under serving names, translated once from Hugging Face's names.

Knows nothing about graphs or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.branches import RUN_KEYS, Branches, branches_of
from coterie.models.delta_net import DeltaNets, delta_nets_of
from coterie.models.encoder import Encoder, encoder_of, is_bidirectional
from coterie.models.factors import factors_of
from coterie.models.families import family_of
from coterie.models.family import NAMES, Bias, Family, FeedForward, Names, Norm
from coterie.models.fields import Fields
from coterie.models.latent import Latent, latent_of, rotated_channels
from coterie.models.layered import Layered, layered_of
from coterie.models.nested import text_config
from coterie.models.refused import refuse_features
from coterie.models.rope import Rope, rope_from_config
from coterie.models.scales import scales_of
from coterie.models.short_conv import ShortConvs, inner_in_blocks, short_convs_of
from coterie.models.single import plain_layers_of, with_types
from coterie.models.sparsity import density_of
from coterie.models.state_space import StateSpaces, state_spaces_of
from coterie.models.windows import layers_without_rope, windows_of

MAX_LAYERS = 10_000  # more than any model has; a corrupt number must not build an endless graph


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and flags of a model. `windows` has one entry per layer, in tokens, 0 for none.

    `position_offset` applies if `names.positions` names a table; `density` is that of the layers' linears.
    `attention_scale` None means head_dim ** -0.5. The output of a block is multiplied by `residual_scale` before it is
    added. `local_rope`: the rope of layers with a window, if it differs. Caps are 0 for none. `rounds_embed_scale`: the
    scale is rounded to the embedding's type. `branches` replace the plain feed-forward block in their layers.
    `extra_layers`: number of additional layers that a file may hold after these; they are never run. If `plain_layers`
    is a tuple, each layer is a single block, and those listed are feed-forward blocks. `factors`: op name of a product
    -> factor.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    windows: tuple[int, ...]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    head_bias: bool = False
    qk_norm_all_heads: bool = False
    qk_norm_after_rope: bool = False
    norm: Norm = Norm.RMS
    norm_bias: bool = True
    norm_offset: float = 0.0
    feed_forward: FeedForward = FeedForward.GATED_SILU
    alibi: bool = False
    parallel_norms: int = 0
    position_offset: int = 0
    density: float = 1.0
    embed_scale: float = 1.0
    attention_scale: float | None = None
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    rounds_embed_scale: bool = False
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    local_rope: Rope | None = None
    layers_without_rope: tuple[int, ...] = ()
    branches: Branches | None = None
    layered: Layered | None = None
    delta_nets: DeltaNets | None = None
    short_convs: ShortConvs | None = None
    state_spaces: StateSpaces | None = None
    plain_layers: tuple[int, ...] | None = None
    factors: Mapping[str, float] = field(default_factory=dict, hash=False)
    latent: Latent | None = None
    gated_attention: bool = False
    extra_layers: int = 0
    encoder: Encoder | None = None
    down_bias: bool = False
    bidirectional: bool = False
    names: Names = NAMES

    @property
    def attending_layers(self) -> tuple[int, ...]:
        """The layers with keys and values of their own, in the order of the KV state."""
        spaces = None if self.state_spaces and self.state_spaces.parallel_to_attention else self.state_spaces
        recurrent = self.delta_nets or self.short_convs or spaces
        others = (*(recurrent.layers if recurrent else ()), *(self.plain_layers or ()))
        end = self.layered.first_shared if self.layered else self.num_layers
        return tuple(layer for layer in range(end) if layer not in others)

    @property
    def max_context(self) -> int:
        """The maximum number of tokens of prompt and answer together."""
        if self.encoder is None:
            return self.rope.max_context
        within = self.rope.max_context - self.encoder.first_position
        return min(within, self.encoder.max_tokens or within)

    @staticmethod
    def from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
        """Translate the object in config.json, in the older or the newer key style.

        Raises CheckpointError for a key that is missing or wrong, UnsupportedError naming an unsupported feature.
        """
        raw = text_config(raw, where)
        family = family_of(Fields(raw, where))
        config = _usual_keys(raw, where, family)
        config = with_types(config) if family.single_blocks else config
        own = (*family.supported_keys, family.qk_norm_key, family.extra_layers_key, family.bidirectional_key)
        refuse_features(config, (*own, *(RUN_KEYS if family.branches else ())))
        num_layers, num_heads = config.count("num_hidden_layers"), config.count("num_attention_heads")
        if num_layers > MAX_LAYERS:
            raise config.wrong("num_hidden_layers", f"is {num_layers}", f"at most {MAX_LAYERS}")
        hidden_size = config.count("hidden_size")
        head_dim = _head_dim(config, family, hidden_size, num_heads)
        windows = windows_of(config, family, num_layers)
        layered = layered_of(config, windows, family.layer_inputs) if family.per_layer_heads else None
        return ModelConfig(
            family=family.model_type,
            vocab_size=config.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_intermediate_size(config, family, hidden_size),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=_num_kv_heads(config, family, num_heads),
            head_dim=head_dim,
            norm_eps=config.number("rms_norm_eps", family.norm_eps),
            rope=rope_from_config(config, family, layered.full_dim if layered else head_dim),
            local_rope=rope_from_config(config, family, head_dim, local=True) if family.rope_by_window else None,
            windows=windows,
            qkv_bias=_bias(config, family.qkv_bias, "attention_bias"),
            o_bias=_bias(config, family.o_bias, "attention_bias"),
            mlp_bias=_bias(config, family.mlp_bias, "mlp_bias"),
            down_bias=family.down_bias,
            qk_norm=config.flag(family.qk_norm_key) if family.qk_norm_key else family.qk_norm,
            head_bias=_bias(config, family.head_bias, "head_bias"),
            qk_norm_all_heads=family.qk_norm_all_heads,
            qk_norm_after_rope=family.qk_norm_after_rope,
            tied_embeddings=config.flag("tie_word_embeddings", family.tied_embeddings),
            norm=family.norm,
            norm_bias=family.norm_bias,
            norm_offset=family.norm_offset,
            rounds_embed_scale=family.scaled_embeddings,
            feed_forward=_feed_forward(config, family),
            alibi=family.alibi,
            parallel_norms=_parallel_norms(config, family),
            position_offset=family.position_offset,
            density=density_of(config),
            names=family.names,
            layers_without_rope=layers_without_rope(config, family, num_layers),
            branches=branches_of(config, family.branches, num_layers),
            layered=layered,
            delta_nets=delta_nets_of(config, num_layers, family.nets_by_key_heads) if family.delta_nets else None,
            short_convs=short_convs_of(config, num_layers) if family.short_convs else None,
            state_spaces=state_spaces_of(config, family.state_spaces, num_layers) if family.state_spaces else None,
            plain_layers=plain_layers_of(config) if family.single_blocks else None,
            factors=factors_of(config) if family.has_factors else {},
            latent=latent_of(config, family.latent, num_heads) if family.latent else None,
            gated_attention=family.gated_attention,
            encoder=encoder_of(config, family),
            bidirectional=is_bidirectional(config, family),
            extra_layers=config.whole(family.extra_layers_key, 0) if family.extra_layers_key else 0,
            **scales_of(config, family),
        )


def _usual_keys(raw: Mapping[str, Any], where: str, family: Family) -> Fields:
    """The config under the usual keys. A family's own key wins over the usual one, except for `usual_first`.

    This is how transformers' classes read them. Raises UnsupportedError for a setting that the family does not support.
    """
    names = {usual: own for usual, own in family.keys.items() if usual not in raw or usual not in family.usual_first}
    names = {usual: own for usual, own in names.items() if own in raw or usual not in raw}
    config = Fields({**raw, **{usual: raw[own] for usual, own in names.items() if own in raw}}, where, names)
    for key, wanted in family.required.items():
        if config.flag(key, wanted) is not wanted:
            fact = f"{key} = {config.flag(key)} is not supported for {family.model_type}"
            raise UnsupportedError(where, fact, f"use a model where it is {wanted}")
    for key in family.mandatory_keys:
        if config.get(key) is None:
            fact = f"{key} is missing, and its default is not supported for {family.model_type}"
            raise UnsupportedError(where, fact, "use a config that says it")
    for key in family.same_as_hidden:
        if config.count(key, hidden := config.count("hidden_size")) != hidden:
            fact = f"{key} {config.count(key)} beside hidden_size {hidden} is not supported for {family.model_type}"
            raise UnsupportedError(where, fact, "use a model where they are equal")
    return config


def _feed_forward(config: Fields, family: Family) -> FeedForward:
    """The activation of the feed-forward block: the family's, or the one that the config names, if it may."""
    key = family.activation_key
    name = config.get(key)
    if not family.feed_forwards or name is None:
        return family.feed_forward
    if not isinstance(name, str) or name not in family.feed_forwards:
        fact = f"{key} {name!r} is not supported for {family.model_type}"
        raise UnsupportedError(config.where, fact, f"Coterie runs {', '.join(family.feed_forwards)}")
    return family.feed_forwards[name]


def _intermediate_size(config: Fields, family: Family, hidden_size: int) -> int:
    """Width of the feed-forward block; 4 * hidden_size by default with GELU or ReLU, required for all others."""
    said = family.feed_forward.is_gated or family.feed_forward in (FeedForward.RELU_SQUARED, FeedForward.XIELU)
    if family.inner_in_blocks:
        return inner_in_blocks(config)
    return config.count(family.inner_key, None if said else 4 * hidden_size)


def _head_dim(config: Fields, family: Family, hidden_size: int, num_heads: int) -> int:
    if family.latent:
        return rotated_channels(config, family.latent)
    default = None if "head_dim" in config.raw else family.head_dim  # null means hidden_size / num_heads
    if config.get("head_dim", default) is None and hidden_size % num_heads:
        fact = f"{num_heads} does not divide hidden_size {hidden_size}, and head_dim is missing"
        raise CheckpointError(config.where, f"num_attention_heads {fact}", "give head_dim")
    head_dim = config.count("head_dim", default or hidden_size // num_heads)
    if head_dim % 2:
        raise UnsupportedError(config.where, f"head_dim {head_dim} is odd", "rope rotates halves of equal size")
    return head_dim


def _num_kv_heads(config: Fields, family: Family, num_heads: int) -> int:
    """Number of key/value heads: an absent key means the family's default, null as many as query heads."""
    default = num_heads if "num_key_value_heads" in config.raw else family.num_kv_heads
    num_kv_heads = config.count("num_key_value_heads", default or num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong("num_key_value_heads", f"is {num_kv_heads}", f"a divisor of the {num_heads} attention heads")
    return num_kv_heads


def _bias(config: Fields, bias: Bias, key: str) -> bool:
    by_config = bias in (Bias.BY_CONFIG, Bias.UNLESS_OFF)
    return config.flag(key, bias is Bias.UNLESS_OFF) if by_config else bias is Bias.ALWAYS


def _parallel_norms(config: Fields, family: Family) -> int:
    if family.parallel_key:
        return int(config.flag(family.parallel_key))
    return config.count("num_ln_in_parallel_attn", family.parallel_norms) if family.parallel_norms else 0

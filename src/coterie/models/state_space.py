"""Config of selective state spaces (Mamba-2): which layers have one, and their sizes. The ops are in graph/scan/ops.py.

    z, x, dt = rows of one projection; y = scan(conv(x), dt); out(norm(y * silu(z)))

Knows nothing about graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from coterie.core.errors import UnsupportedError
from coterie.models.factors import channel_factors_of
from coterie.models.fields import Fields
from coterie.models.refused import ACTIVATIONS

_SPACE, _ATTENDS = ("mamba", "linear_attention"), ("attention", "full_attention")  # layer types, older and newer
INDICES, LIMIT = "attn_layer_indices", "time_step_limit"


class Where(Enum):
    """Which layers have a state space."""

    BY_TYPES = "those that layer_types calls mamba, or all"
    OUTSIDE = "all but those in attn_layer_indices"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class ScanNames:
    """Tensor names after a layer's prefix and `place`; projections and the norm omit `.weight`."""

    place: str = "mamba."
    joined: str = "in_proj"  # rows of z, x and dt
    z: str = "in_z"
    x: str = "in_x"
    dt: str = "in_dt"
    conv: str = "conv1d"
    a_log: str = "A_log"
    dt_bias: str = "dt_bias"
    skip: str = "D"
    norm: str = "norm"
    out: str = "out_proj"

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The matrix that files store joined -> its parts."""
        return {self.place + self.joined: tuple(self.place + part for part in (self.z, self.x, self.dt))}


@dataclass(frozen=True, slots=True)
class ScanKeys:
    """A family's config keys and their defaults; `dim` 0: total width divided by the number of heads.

    `width`: key of the total width of all heads, if there is one; else it is `expand` times the hidden size.
    `norm_key`, `norm_first_key`: flags for whether there is a norm, and whether it precedes the gate.
    """

    where: Where = Where.BY_TYPES
    parallel_to_attention: bool = False
    heads: tuple[str, int] = ("mamba_n_heads", 128)
    dim: tuple[str, int] = ("mamba_d_head", 0)
    state: tuple[str, int] = ("mamba_d_state", 256)
    groups: tuple[str, int] = ("mamba_n_groups", 1)
    taps: tuple[str, int] = ("mamba_d_conv", 4)
    expand: tuple[str, int] = ("mamba_expand", 2)
    conv_bias: str = "mamba_conv_bias"
    bias: str = "mamba_proj_bias"
    width: tuple[str, int] = ("", 0)
    norm_key: str = ""
    norm_first_key: str = ""
    has_factors: bool = False  # the config has factors for groups of channels (factors.py)
    activation: str = "hidden_act"  # key of the activation after the convolution
    other_types: tuple[str, ...] = ()  # types of layers that are neither a state space nor attention
    names: ScanNames = field(default_factory=ScanNames)


@dataclass(frozen=True, slots=True)
class StateSpaces:
    """The layers that have a state space, instead of attention or parallel to it, and their heads and channels.

    `groups`: heads in a group share the write and read vectors (B and C in the Mamba-2 paper). `min_step` and
    `max_step` bound a token's step size. `norms`: whether there is a norm, over each of these groups; `norm_first`:
    it precedes the gate. `factors`: of the channels for heads, write and read, before the convolution.
    """

    layers: tuple[int, ...]
    heads: int
    head_dim: int
    state: int
    groups: int
    taps: int
    conv_bias: bool = True
    bias: bool = False
    min_step: float = 0.0
    max_step: float = math.inf
    norms: bool = True
    norm_first: bool = False
    parallel_to_attention: bool = False
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    names: ScanNames = field(default_factory=ScanNames)

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: those of all heads, and each group's write and read vectors."""
        return self.inner + 2 * self.groups * self.state


def state_spaces_of(config: Fields, keys: ScanKeys, num_layers: int) -> StateSpaces | None:
    """The state spaces of a config; None if all layers are attention.

    Raises CheckpointError, UnsupportedError.
    """
    layers = _layers(config, keys, num_layers)
    if not layers:
        return None
    if config.get(keys.activation, ACTIVATIONS[0]) not in ACTIVATIONS:
        fact = f"{keys.activation} {config.get(keys.activation)!r} is not supported behind a convolution"
        raise UnsupportedError(config.where, fact, f"Coterie runs {ACTIVATIONS[0]}")
    heads, state, groups, taps = (config.count(*key) for key in (keys.heads, keys.state, keys.groups, keys.taps))
    inner = config.count(keys.expand[0], keys.expand[1]) * config.count("hidden_size")
    width_key, width = keys.width
    if width_key:
        inner = config.count(width_key, inner if width_key in config.raw else width)
    dim_key, dim = keys.dim
    said = config.get(dim_key, dim or "auto") != "auto"
    dim = config.count(dim_key, dim) if said else inner // heads
    if heads % groups:
        raise config.wrong(keys.heads[0], f"is {heads}", f"a multiple of the {groups} groups")
    if (not said or width_key) and dim * heads != inner:
        fact = f"is {heads}, of {dim} channels each"
        raise config.wrong(keys.heads[0], fact, f"so many that all have {inner} channels")
    if not 1 < taps <= dim * state:
        raise config.wrong(keys.taps[0], f"is {taps}", f"from 2 to {dim * state}")
    least, most = _limits(config)
    return StateSpaces(
        layers=layers,
        heads=heads,
        head_dim=dim,
        state=state,
        groups=groups,
        taps=taps,
        conv_bias=config.flag(keys.conv_bias, True),
        bias=config.flag(keys.bias),
        min_step=least,
        max_step=most,
        norms=config.flag(keys.norm_key) if keys.norm_key else True,
        norm_first=config.flag(keys.norm_first_key, True) if keys.norm_first_key else False,
        parallel_to_attention=keys.parallel_to_attention,
        factors=channel_factors_of(config) if keys.has_factors else (1.0, 1.0, 1.0),
        names=keys.names,
    )


def _layers(config: Fields, keys: ScanKeys, num_layers: int) -> tuple[int, ...]:
    if keys.where is Where.OUTSIDE:
        attending = config.layer_numbers(INDICES)
        return tuple(layer for layer in range(num_layers) if layer not in attending)
    types = config.get("layer_types") if keys.where is Where.BY_TYPES else None
    types = [_SPACE[0]] * num_layers if types is None else types
    known = (*_SPACE, *_ATTENDS, *keys.other_types)
    if not isinstance(types, list) or len(types) != num_layers or any(kind not in known for kind in types):
        raise config.wrong(
            "layer_types",
            f"is {types!r}",
            f"a list of {num_layers} names, {', '.join(('mamba', *keys.other_types))} or attention",
        )
    return tuple(layer for layer, kind in enumerate(types) if kind in _SPACE)


def _limits(config: Fields) -> tuple[float, float]:
    """The bounds of a step size. They apply to every token, although transformers ignores them in single steps."""
    said = config.get(LIMIT, [0.0, math.inf])
    least, most = (_bound(bound) for bound in said) if isinstance(said, list) and len(said) == 2 else (-1.0, -1.0)
    if not 0.0 <= least < most:
        raise config.wrong(LIMIT, f"is {said!r}", "two numbers from 0 on, the smaller one first")
    return least, most


def _bound(said: object) -> float:
    """A number, or transformers' object for infinity, which JSON lacks; -1 for anything else."""
    if isinstance(said, dict) and said.get("__float__") == "Infinity":
        return math.inf
    return float(said) if isinstance(said, int | float) and not isinstance(said, bool) else -1.0

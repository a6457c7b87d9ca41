"""Config of latent attention: the widths of its parts. What it computes is in graph/latent/ops.py.

Knows nothing about graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

QUERY_RANK, RANK, ROTATED = "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim"
PLAIN, VALUES = "qk_nope_head_dim", "v_head_dim"
LATENT_RUNS = (RANK,)  # keys supported by families with latent attention, and refused for others
LATENT_EPS = 1e-6  # eps of the latent norms, whatever rms_norm_eps says


@dataclass(frozen=True, slots=True)
class LatentNames:
    """Tensor names of a layer, without `.weight`; a query projection without a rank has the usual name."""

    q_down: str = "self_attn.q_a_proj"
    q_norm: str = "self_attn.q_a_layernorm"
    q_up: str = "self_attn.q_b_proj"
    down: str = "self_attn.kv_a_proj_with_mqa"
    norm: str = "self_attn.kv_a_layernorm"
    up: str = "self_attn.kv_b_proj"


LATENT_NAMES = LatentNames()


@dataclass(frozen=True, slots=True)
class LatentKeys:
    """A family's defaults of config keys.

    `query_rank` None: queries have no rank; `values` None: hidden_size / num_heads.
    """

    query_rank: int | None = 1536
    rank: int = 512
    rotated: int = 64
    plain: int = 128
    values: int | None = 128


@dataclass(frozen=True, slots=True)
class Latent:
    """Widths. A token's cached row has `rank` latent channels and `rotated` ones of a key that all heads share.

    A head's query has `plain` and `rotated` channels, its output `values`. `query_rank`: width of the low-rank
    projection from which queries are computed, 0 if they come from the layer's input. Scores are multiplied by `scale`.
    """

    query_rank: int
    rank: int
    rotated: int
    plain: int
    values: int
    scale: float
    names: LatentNames = LATENT_NAMES


def rotated_channels(config: Fields, keys: LatentKeys) -> int:
    """Number of rotated channels of a head. Raises UnsupportedError if it is odd."""
    rotated = config.count(ROTATED, keys.rotated)
    if rotated % 2:
        raise UnsupportedError(config.where, f"{ROTATED} {rotated} is odd", "rope rotates pairs of channels")
    return rotated


def latent_of(config: Fields, keys: LatentKeys, num_heads: int) -> Latent:
    """The latent attention of a config. Raises CheckpointError, UnsupportedError."""
    if config.count("num_key_value_heads", num_heads) != num_heads:
        fact = f"is {config.get('num_key_value_heads')}"
        raise config.wrong("num_key_value_heads", fact, f"{num_heads} as num_attention_heads: heads share latent rows")
    plain, rotated = config.count(PLAIN, keys.plain), rotated_channels(config, keys)
    return Latent(
        query_rank=_query_rank(config, keys),
        rank=config.count(RANK, keys.rank),
        rotated=rotated,
        plain=plain,
        values=config.count(VALUES, keys.values or config.count("hidden_size") // num_heads),
        scale=(plain + rotated) ** -0.5 * _yarn_factor(config),
    )


def _query_rank(config: Fields, keys: LatentKeys) -> int:
    """A null key means none, an absent one the family's default."""
    default = None if QUERY_RANK in config.raw else keys.query_rank
    return 0 if config.get(QUERY_RANK, default) is None else config.count(QUERY_RANK, default)


def _yarn_factor(config: Fields) -> float:
    """YaRN's factor of the score scale, from `mscale_all_dim`; squared, since it applies to queries and keys."""
    rope = config.section("rope_scaling") or config.section("rope_parameters")
    if rope is None or rope.get("rope_type", rope.get("type", "default")) == "default":
        return 1.0
    weight, factor = rope.get("mscale_all_dim"), rope.number("factor", 1.0)
    if not weight or factor <= 1:
        return 1.0
    return (0.1 * rope.number("mscale_all_dim") * math.log(factor) + 1.0) ** 2

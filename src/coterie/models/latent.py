"""Latent attention in a config: how wide its parts are. What it computes is in graph/latent/ops.py.

Knows nothing about graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

QUERY_RANK, RANK, ROTATED = "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim"
PLAIN, VALUES = "qk_nope_head_dim", "v_head_dim"
LATENT_RUNS = (RANK,)  # keys that mean something to families with it and are refused for the others
LATENT_EPS = 1e-6  # of the norms of latent numbers, whatever rms_norm_eps says


@dataclass(frozen=True, slots=True)
class LatentNames:
    """Tensors of a layer by their names in the file, without `.weight`; a query without a rank has the usual name."""

    q_down: str = "self_attn.q_a_proj"
    q_norm: str = "self_attn.q_a_layernorm"
    q_up: str = "self_attn.q_b_proj"
    down: str = "self_attn.kv_a_proj_with_mqa"
    norm: str = "self_attn.kv_a_layernorm"
    up: str = "self_attn.kv_b_proj"


LATENT_NAMES = LatentNames()


@dataclass(frozen=True, slots=True)
class LatentKeys:
    """What a family means where a config leaves keys out.

    `query_rank` None: queries have none; `values` None: hidden_size / num_heads.
    """

    query_rank: int | None = 1536
    rank: int = 512
    rotated: int = 64
    plain: int = 128
    values: int | None = 128


@dataclass(frozen=True, slots=True)
class Latent:
    """Numbers of a token: `rank` latent ones, and the `rotated` of a key that all heads share.

    A head's query has `plain` channels and as many rotated ones; a head gives `values`. `query_rank`: numbers of which
    queries are made, 0 where they are made of the layer's input. Scores are multiplied by `scale`.
    """

    query_rank: int
    rank: int
    rotated: int
    plain: int
    values: int
    scale: float
    names: LatentNames = LATENT_NAMES


def rotated_channels(config: Fields, keys: LatentKeys) -> int:
    """Channels of a head that are rotated. Raises UnsupportedError for an odd number of them."""
    rotated = config.count(ROTATED, keys.rotated)
    if rotated % 2:
        raise UnsupportedError(config.where, f"{ROTATED} {rotated} is odd", "rope rotates pairs of channels")
    return rotated


def latent_of(config: Fields, keys: LatentKeys, num_heads: int) -> Latent:
    """What a config says. Raises CheckpointError, UnsupportedError."""
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
    """A null one means none, an absent one the family's."""
    default = None if QUERY_RANK in config.raw else keys.query_rank
    return 0 if config.get(QUERY_RANK, default) is None else config.count(QUERY_RANK, default)


def _yarn_factor(config: Fields) -> float:
    """What yarn makes of the scale of scores, by `mscale_all_dim`: a square, since queries and keys grow alike."""
    rope = config.section("rope_scaling") or config.section("rope_parameters")
    if rope is None or rope.get("rope_type", rope.get("type", "default")) == "default":
        return 1.0
    weight, factor = rope.get("mscale_all_dim"), rope.number("factor", 1.0)
    if not weight or factor <= 1:
        return 1.0
    return (0.1 * rope.number("mscale_all_dim") * math.log(factor) + 1.0) ** 2

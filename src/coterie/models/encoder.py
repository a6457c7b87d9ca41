"""Encoders: models with bidirectional attention, which return vectors and sample no tokens.

    bert.embeddings.LayerNorm.gamma        ->   embeddings.LayerNorm.weight
    embeddings.position_embeddings.weight  ->   without any rows before that of the first position
    embeddings.token_type_embeddings.weight     unchanged: row 0, unless the token is in the second text of a pair
    pooler.*, cls.*, lm_head.*                  not read by any layer (for models that score: scores.py)

Knows nothing about how rows become vectors (pooling).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from coterie.checkpoint.dense import Activation
from coterie.checkpoint.folder import CONFIG, Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.fields import Fields

if TYPE_CHECKING:
    from coterie.models.family import Family

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # in files converted from TensorFlow
SCORES = "ForSequenceClassification"  # a class whose head scores a text, or a pair of them (scores.py)
_MASKED = "ForMaskedLM"  # a class with a masked-token head: its encoder is run without the head


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """A layer of a scoring head: the name of its tensors, its activation, and the norm after that, if any.

    `activation_key`: config key that must name this activation, if present.
    """

    name: str
    activation: Activation = "none"
    activation_key: str = ""
    norm: str = ""


@dataclass(frozen=True, slots=True)
class EncoderKeys:
    """What is specific to a family of encoders.

    `model`: prefix of tensor names in files of models with a head; `older_prefix`: that in files from before
    transformers supported the family.
    `types`: name of the table of token types (which text of a pair). `first_position`: rows of the table of positions
    before that of the first token. `required`: config keys that must have this value or be absent. `post_norm`:
    norms follow the residual sums instead of preceding the blocks. `first_norm`: with norms before the blocks, whether
    the first layer has one before attention. `scaled_rope`: (config key for angles that change in long texts, config
    key for the length from which they do, its default). `buckets`: number of distance buckets of attention biases
    (distance.py), 0 for none. `head`: layers of the scoring head. `pools_by_config`: `classifier_pooling` says which
    rows it reads; otherwise the first one.
    """

    model: str
    older_prefix: str = ""
    types: str = ""
    first_position: int = 0
    unread: tuple[str, ...] = ("pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids")
    required: Mapping[str, Any] | None = None
    post_norm: bool = True
    first_norm: bool = True
    scaled_rope: tuple[str, str, int] | None = None
    buckets: int = 0
    head: tuple[HeadKeys, ...] = ()
    pools_by_config: bool = False
    own_code: bool = False  # released configs name custom code, whose behaviour is implemented here


@dataclass(frozen=True, slots=True)
class Encoder:
    """What is specific to one encoder.

    `type_rows`: rows of the table of token types, 0 for none. `max_tokens`: limit of a text's length, 0 if its
    positions imply it. The other fields are as in EncoderKeys.
    """

    type_rows: int
    first_position: int
    post_norm: bool
    first_norm: bool
    max_tokens: int = 0
    buckets: int = 0


def encoder_of(config: Fields, family: Family) -> Encoder | None:
    """The encoder settings of a config; None for a decoder. Raises CheckpointError, UnsupportedError."""
    keys = family.encoder
    if keys is None:
        return None
    for key, wanted in (keys.required or {}).items():
        if config.get(key, wanted) != wanted:
            fact = f"{key} = {config.get(key)!r} is not supported for {family.model_type}"
            raise UnsupportedError(config.where, fact, f"use a model where it is {wanted!r}")
    type_rows = config.whole("type_vocab_size", 2) if keys.types else 0
    max_tokens = 0
    if keys.scaled_rope is not None and config.get(keys.scaled_rope[0]):
        config.number(keys.scaled_rope[0])
        max_tokens = config.count(*keys.scaled_rope[1:])
    return Encoder(type_rows, keys.first_position, keys.post_norm, keys.first_norm, max_tokens, keys.buckets)


def is_bidirectional(config: Fields, family: Family) -> bool:
    """Whether attention is bidirectional: in encoders, and in decoders whose config says so."""
    return family.encoder is not None or bool(family.bidirectional_key and config.flag(family.bidirectional_key))


def bare_name(name: str, keys: EncoderKeys | None) -> str:
    """A tensor's name in the file of an encoder saved without a head; unchanged for a decoder."""
    if keys is None:
        return name
    bare = name.removeprefix(keys.model).removeprefix(keys.older_prefix)
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: _OLD[old[0]], bare)


def bare_encoder(checkpoint: Checkpoint, family: Family, keys: EncoderKeys, scores: bool = False) -> Checkpoint:
    """An encoder's checkpoint as if it had been saved without a head; `scores`: it is that of a reranker.

    If `architectures` lists several classes, the one without a head is taken: gte-multilingual-base also names one that
    weighs tokens. Raises CheckpointError, UnsupportedError.
    """
    config, where = dict(checkpoint.config), str(checkpoint.path / CONFIG)
    own, classes = family.causal_class, config.get("architectures") or [family.causal_class]
    listed = classes if isinstance(classes, list) else [classes]
    if not scores and own not in listed and listed != [own.removesuffix("Model") + _MASKED]:
        fact = f"architectures {classes} does more than give vectors, which is not supported"
        raise UnsupportedError(where, fact, f"use a model of {own}, which gives vectors")
    if (code := Fields(config, where).own_code()) and not keys.own_code:
        fact = f"is run by code of its own ({code}), which may do something else"
        raise UnsupportedError(where, fact, f"use a model of transformers' {own}")
    tensors: dict[str, TensorInfo] = {}
    for name, info in checkpoint.tensors.items():
        bare = bare_name(name, keys)
        if not bare.startswith(keys.unread):
            tensors[bare] = replace(info, name=bare)
    table = tensors.get(family.names.positions)
    if keys.first_position and table is not None and table.shape[0] == config.get("max_position_embeddings"):
        tensors[table.name] = _rows_from(table, keys.first_position, where)
    if config.get("layer_norm_eps") is not None:  # transformers' key, which wins over older ones
        config.setdefault("rms_norm_eps", config["layer_norm_eps"])
    return replace(checkpoint, config={**config, "architectures": [own]}, tensors=tensors)


def _rows_from(table: TensorInfo, first: int, where: str) -> TensorInfo:
    """The rows of a table from `first` on, in place."""
    rows, *rest = table.shape
    if rows <= first:
        fact = f"{table.name} has {rows} rows, of which the first {first} are of no position"
        raise CheckpointError(where, fact, "download the file again")
    return table.rows(table.name, first, (rows - first, *rest))

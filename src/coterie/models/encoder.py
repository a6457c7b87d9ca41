"""Encoders: models whose tokens see all of their text, which give vectors and draw no tokens.

    bert.embeddings.LayerNorm.gamma        ->   embeddings.LayerNorm.weight
    embeddings.position_embeddings.weight  ->   its rows from the first position's on, where it has others
    embeddings.token_type_embeddings.weight     as it is: row 0, of a text that is no second of a pair, is looked up
    pooler.*, cls.*, lm_head.*                  are read by none of its layers (of one that scores: scores.py)

Knows nothing about how vectors are made of rows.
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

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of files converted from TensorFlow
SCORES = "ForSequenceClassification"  # a class whose head scores a text, or a pair of them (scores.py)
_MASKED = "ForMaskedLM"  # a class whose head guesses tokens that were left out: its encoder is run, without the head


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """A layer of a head that scores: its tensors' name, what its numbers go through, and the norm behind that, if any.

    `activation_key`: of a config, which must name that activation or none.
    """

    name: str
    activation: Activation = "none"
    activation_key: str = ""
    norm: str = ""


@dataclass(frozen=True, slots=True)
class EncoderKeys:
    """What a family of encoders has besides. `model`: how its tensors' names begin in files of models with a head, and
    `older`: in those of before transformers had them.

    `types`: the table of which text of a pair a token is of. `first_position`: rows of the table of positions before
    that of the first token. `required`: keys of the config that have one value, or are left out. `norms_behind`: behind
    the sums, and not before the blocks. `first_norm`: before attention in the first layer, where norms stand before.
    `scaled_rope`: a key by which angles change in texts of more tokens than another key says, and that one's default.
    `buckets` of distances, by which attention has biases (distance.py), 0 for none.
    `head`: of those that score; `pools_by_config`: `classifier_pooling` says of which rows, else of the first.
    """

    model: str
    older: str = ""
    types: str = ""
    first_position: int = 0
    unread: tuple[str, ...] = ("pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids")
    required: Mapping[str, Any] | None = None
    norms_behind: bool = True
    first_norm: bool = True
    scaled_rope: tuple[str, str, int] | None = None
    buckets: int = 0
    head: tuple[HeadKeys, ...] = ()
    pools_by_config: bool = False
    own_code: bool = False  # released configs name code of their own, and this is what that does


@dataclass(frozen=True, slots=True)
class Encoder:
    """What one has besides: rows of the table of types, 0 for none, and of that of positions before the first token's;
    where its norms stand, as EncoderKeys has it; `most_tokens` of a text, 0 where its positions say it; buckets of
    distances, 0 for none.
    """

    type_rows: int
    first_position: int
    norms_behind: bool
    first_norm: bool
    most_tokens: int = 0
    buckets: int = 0


def encoder_of(config: Fields, family: Family) -> Encoder | None:
    """What a config says of an encoder; None for a decoder. Raises CheckpointError, UnsupportedError."""
    keys = family.encoder
    if keys is None:
        return None
    for key, wanted in (keys.required or {}).items():
        if config.get(key, wanted) != wanted:
            fact = f"{key} = {config.get(key)!r} is not supported for {family.model_type}"
            raise UnsupportedError(config.where, fact, f"use a model where it is {wanted!r}")
    type_rows = config.whole("type_vocab_size", 2) if keys.types else 0
    most_tokens = 0
    if keys.scaled_rope is not None and config.get(keys.scaled_rope[0]):
        config.number(keys.scaled_rope[0])
        most_tokens = config.count(*keys.scaled_rope[1:])
    return Encoder(type_rows, keys.first_position, keys.norms_behind, keys.first_norm, most_tokens, keys.buckets)


def sees_all(config: Fields, family: Family) -> bool:
    """Whether tokens see those behind them too: of an encoder, and where the config of a decoder says so."""
    return family.encoder is not None or bool(family.sees_all_key and config.flag(family.sees_all_key))


def bare_name(name: str, keys: EncoderKeys | None) -> str:
    """What a tensor is called in a file of an encoder that was saved without a head; of a decoder as it is."""
    if keys is None:
        return name
    bare = name.removeprefix(keys.model).removeprefix(keys.older)
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: _OLD[old[0]], bare)


def bare_encoder(checkpoint: Checkpoint, family: Family, keys: EncoderKeys, scores: bool = False) -> Checkpoint:
    """A checkpoint of an encoder as if it were saved without a head, which it has where it `scores`.

    Of several classes the one without a head is meant: gte-multilingual-base names one that weighs tokens besides.
    Raises CheckpointError, UnsupportedError.
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
        tensors[table.name] = _behind(table, keys.first_position, where)
    if config.get("layer_norm_eps") is not None:  # as transformers' own configs have it, whatever older ones call it
        config.setdefault("rms_norm_eps", config["layer_norm_eps"])
    return replace(checkpoint, config={**config, "architectures": [own]}, tensors=tensors)


def _behind(table: TensorInfo, first: int, where: str) -> TensorInfo:
    """The rows of a table from `first` on, where they lie."""
    rows, *rest = table.shape
    if rows <= first:
        fact = f"{table.name} has {rows} rows, of which the first {first} are of no position"
        raise CheckpointError(where, fact, "download the file again")
    return table.rows(table.name, first, (rows - first, *rest))

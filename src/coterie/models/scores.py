"""Scoring heads of rerankers: models that score how well a document answers a query.

    pooler.dense (tanh), classifier                     BERT, on the first row
    classifier.dense (tanh), classifier.out_proj        RoBERTa, XLM-RoBERTa, on the first row
    head.dense (gelu), head.norm, classifier            ModernBERT, on the first row or the mean
    score                                               decoders, on the last row
    lm_head[true] - lm_head[false]                      decoders whose modules.json names a LogitScore, on the last row

They are small, so they are read and computed on the host; a step ends with rows of the last norm, as for vectors.
Knows nothing about texts. Sources: the classes `*ForSequenceClassification` of transformers, and
LogitScore of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.dense import Activation, Dense, Norm, numbers
from coterie.checkpoint.folder import CONFIG, Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.checkpoint.sentence import POOLINGS, Pooling, module_config
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.config import ModelConfig
from coterie.models.encoder import SCORES, HeadKeys, bare_name
from coterie.models.families import FAMILIES
from coterie.models.family import Family
from coterie.models.fields import Fields

LOGIT_SCORE = "LogitScore"
_OF_DECODERS = (HeadKeys("score"),)
_WEIGHTS = "check that config.json belongs to these weights"


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """y = norm(activation(W x + b)), given by its tensors; `less` is subtracted from W."""

    weight: TensorInfo
    bias: TensorInfo | None = None
    activation: Activation = "none"
    norm: TensorInfo | None = None
    norm_bias: TensorInfo | None = None
    eps: float = 0.0
    less: TensorInfo | None = None

    def read(self, where: str) -> Dense:
        """Read the layer's weights. Raises CheckpointError."""
        bias, norm_bias = [None if info is None else numbers(info) for info in (self.bias, self.norm_bias)]
        norm = None if self.norm is None else Norm(numbers(self.norm), norm_bias, self.eps)
        weight = numbers(self.weight) if self.less is None else numbers(self.weight) - numbers(self.less)
        return Dense(where, weight, bias, self.activation, norm)


@dataclass(frozen=True, slots=True)
class ScoreHead:
    """Computes a score from rows: pooling, then `layers`, the last of which returns one number.

    `name`: its class in transformers. `of_tokens`: the score is a token's logit, or the difference of two.
    """

    where: str
    name: str
    pooling: Pooling
    layers: tuple[HeadLayer, ...]
    of_tokens: bool = False

    def check(self, config: ModelConfig) -> None:
        """Check that the head can be computed for a model of this config.

        Raises CheckpointError if the shapes of layers do not match; UnsupportedError if the result is not one number,
        or if logits would need a bias, cap or scale.
        """
        if self.of_tokens and (config.head_bias or config.logits_cap or config.logits_scale != 1):
            fact = f"scores by logits, to which {config.family} does more than multiply"
            raise UnsupportedError(self.where, fact, "use a model with a head of one label")
        width = config.hidden_size
        for layer in self.layers:
            shapes = [() if info is None else info.shape for info in (layer.bias, layer.norm, layer.norm_bias)]
            if layer.weight.shape[1:] != (width,) or any(s not in ((), layer.weight.shape[:1]) for s in shapes):
                fact = f"tensor {layer.weight.name} has shape {list(layer.weight.shape)} behind {width} numbers"
                raise CheckpointError(self.where, fact, _WEIGHTS)
            width = layer.weight.shape[0]
        if width != 1:
            fact = f"has a head of {width} labels, and a score is one number"
            raise UnsupportedError(self.where, fact, "use a model that was trained with num_labels = 1")

    def read(self) -> tuple[Dense, ...]:
        """Read the weights of all layers. Raises CheckpointError."""
        return tuple([layer.read(self.where) for layer in self.layers])

    @property
    def tensors(self) -> Iterator[TensorInfo]:
        """All tensors of the head, for writing a copy of the model."""
        for layer in self.layers:
            found = (layer.weight, layer.less, layer.bias, layer.norm, layer.norm_bias)
            yield from [info for info in found if info is not None]


def refuse_head(head: ScoreHead | None, where: str) -> None:
    """Raise UnsupportedError for a model with a scoring head, which cannot be merged, stored as a delta or adapted."""
    if head is not None:
        fact = f"is {head.name}, whose head scores and is part of no graph"
        raise UnsupportedError(where, fact, "serve it as an expert of its own, or merge it with PEFT")


def score_head(checkpoint: Checkpoint) -> ScoreHead | None:
    """The scoring head of a model; None if its class has none. Raises CheckpointError, UnsupportedError."""
    config, where = checkpoint.config, str(checkpoint.path / CONFIG)
    family, classes = FAMILIES.get(str(config.get("model_type"))), config.get("architectures")
    if family is not None and classes == [family.causal_class]:
        said = module_config(checkpoint.path, LOGIT_SCORE)
        return None if said is None else _of_tokens(checkpoint, said, classes[0])
    if family is None or classes not in [[name] for name in _classes_of(family)]:
        return None
    known = family.encoder is not None and family.encoder.own_code
    if (code := Fields(config, where).own_code(f"AutoModel{SCORES}")) and not known:
        fact = f"is run by code of its own ({code}), which may do something else"
        raise UnsupportedError(where, fact, f"use a model of transformers' {classes[0]}")
    keys = family.encoder
    layers = _OF_DECODERS if keys is None else keys.head
    tensors = {bare_name(name, keys): info for name, info in checkpoint.tensors.items()}
    eps = float(config.get("norm_eps") or family.norm_eps)
    found = tuple([_layer(layer, tensors, config, eps, where) for layer in layers])
    if keys is None:
        return ScoreHead(where, classes[0], "last", found)
    pooling = str(config.get("classifier_pooling") or "cls") if keys.pools_by_config else "cls"
    if pooling not in POOLINGS:
        fact = f"classifier_pooling is {pooling!r}, which is not supported"
        raise UnsupportedError(where, fact, "use a model where it is cls or mean")
    return ScoreHead(where, classes[0], POOLINGS[pooling], found)


def _classes_of(family: Family) -> tuple[str, ...]:
    """transformers' classes of a family with a scoring head; a text model (Gemma 3) has two."""
    if family.encoder is not None:
        return (family.causal_class.removesuffix("Model") + SCORES,) if family.encoder.head else ()
    stem = family.causal_class.removesuffix("ForCausalLM")
    return stem + SCORES, f"{stem}Text{SCORES}"


def _of_tokens(checkpoint: Checkpoint, said: Mapping[str, Any], name: str) -> ScoreHead:
    """The head that uses logits of the tokens named by a LogitScore. Raises CheckpointError."""
    where, tensors = str(checkpoint.path / CONFIG), checkpoint.tensors
    table = tensors.get(HEAD_WEIGHT, tensors.get(EMBED_WEIGHT))
    rows: list[TensorInfo] = []
    for key in ("true_token_id", "false_token_id"):
        token, kept = said.get(key), f"score.{key.removesuffix('_token_id')}.weight"  # name in a quantised folder
        if token is None and rows:
            break
        if kept in tensors:
            rows.append(tensors[kept])
            continue
        if table is None or type(token) is not int or not 0 <= token < table.shape[0]:
            count = 0 if table is None else table.shape[0]
            fact = f"{key} of {LOGIT_SCORE} is {token!r}, and there are logits of {count} tokens"
            raise CheckpointError(where, fact, _WEIGHTS)
        rows.append(table.rows(kept, token, (1, *table.shape[1:])))
    layer = HeadLayer(rows[0], less=rows[1] if rows[1:] else None)
    return ScoreHead(where, name, "last", (layer,), of_tokens=True)


def _layer(
    keys: HeadKeys, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], eps: float, where: str
) -> HeadLayer:
    """A layer of the head. Raises CheckpointError for a missing tensor, UnsupportedError for another activation."""
    activation = keys.activation
    if keys.activation_key:
        named = config.get(keys.activation_key) or activation
        if named != activation:
            fact = f"{keys.activation_key} is {named!r}, which is not supported"
            raise UnsupportedError(where, fact, f"use a model where it is {activation!r}")
    weight, norm = tensors.get(f"{keys.name}.weight"), tensors.get(f"{keys.norm}.weight")
    if weight is None or (keys.norm and norm is None):
        name = keys.name if weight is None else keys.norm
        raise CheckpointError(where, f"tensor {name}.weight, of the head that scores, is missing", _WEIGHTS)
    if len(weight.shape) != 2:
        raise CheckpointError(where, f"tensor {weight.name} has shape {list(weight.shape)}, no matrix's", _WEIGHTS)
    bias, norm_bias = tensors.get(f"{keys.name}.bias"), tensors.get(f"{keys.norm}.bias")
    return HeadLayer(weight, bias, activation, norm, norm_bias, eps)

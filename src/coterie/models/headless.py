"""Checkpoints of models without a language model head, which return vectors, under the names of whole models.

    layers.3.mlp.up_proj.weight, norm.weight   ->   model.layers.3.mlp.up_proj.weight, model.norm.weight

Knows nothing about how rows become vectors (pooling).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coterie.checkpoint.folder import CONFIG, Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.checkpoint.sentence import is_sentence_model
from coterie.core.errors import UnsupportedError
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.encoder import SCORES, bare_encoder
from coterie.models.families import FAMILIES
from coterie.models.fields import Fields

PREFIX = "model."
_OTHER = "use a model whose tokens see those before them alone"


def with_model_prefix(checkpoint: Checkpoint, scores: bool = False) -> tuple[Checkpoint, bool]:
    """The checkpoint under the names of a whole model, and whether it samples tokens.

    It does not if it is an encoder, has tensors without the usual prefix, is a sentence-transformers model, declares
    bidirectional attention by its family's key, or `scores` (scores.py). Raises UnsupportedError if attention is, or
    may be, bidirectional in a way that is not supported.
    """
    family = FAMILIES.get(str(checkpoint.config.get("model_type")))
    if family is not None and family.encoder is not None:
        return bare_encoder(checkpoint, family, family.encoder, scores), False
    bare = _is_bare(checkpoint.tensors)
    key = family.bidirectional_key if family is not None else ""
    gives_vectors = bool(key and checkpoint.config.get(key))
    if not (bare or gives_vectors or scores or is_sentence_model(checkpoint.path)):
        return checkpoint, True
    where = str(checkpoint.path / CONFIG)
    if checkpoint.config.get("is_causal") is False:
        raise UnsupportedError(
            where, "is_causal is false: tokens see those behind them, which is not supported", _OTHER
        )
    if code := Fields(checkpoint.config, where).own_code():
        fact = f"is run by code of its own ({code}), which may let tokens see those behind them"
        raise UnsupportedError(where, fact, _OTHER)
    tensors = {PREFIX + name if bare else name: info for name, info in checkpoint.tensors.items()}
    head = (HEAD_WEIGHT.removesuffix("weight"), *(("score.",) if scores else ()))
    kept = {name: replace(info, name=name) for name, info in tensors.items() if not name.startswith(head)}
    config = {**checkpoint.config, "architectures": _causal_classes(checkpoint.config.get("architectures"))}
    return replace(checkpoint, config=config, tensors=kept), False


def _causal_classes(classes: Any) -> Any:
    """The classes of `architectures`, renamed to those with a language model head (Qwen3ForCausalLM).

    This applies to those without a head or with a scoring head (Qwen3Model, Gemma3TextModel,
    Qwen3ForSequenceClassification); others are unchanged.
    """
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return classes
    stems = [re.sub(f"(Model|{SCORES})$", "", name) for name in classes]
    found = zip(classes, stems, strict=True)
    return [name if stem == name else f"{stem.removesuffix('Text')}ForCausalLM" for name, stem in found]


def _is_bare(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether names lack the prefix that those of a whole model have."""
    return EMBED_WEIGHT not in tensors and EMBED_WEIGHT.removeprefix(PREFIX) in tensors

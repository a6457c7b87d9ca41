"""Encoders in GGUF: the keys and tensors specific to them, pooling, and scoring heads.

    position_embd.weight [P, D]    RoBERTa's begins with the first token's row, so it can be treated as BERT's
    token_types.weight   [N, D]
    cls.weight, cls.output.weight  scoring head of a reranker; RoBERTa's is stored under the same names as BERT's
    dense_2.weight, dense_3.weight dense layers that EmbeddingGemma applies after pooling
    <architecture>.pooling_type    0 none, 1 mean, 2 first row, 3 last row, 4 a score

Knows nothing about files or tokenizers. Source: the keys that llama.cpp's converters write and its models read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.checkpoint.sentence import Pooling
from coterie.core.errors import UnsupportedError
from coterie.models.family import FULL, SLIDING
from coterie.models.gguf.source import LOCAL_THETA, PATTERN, WINDOW, Architecture, Source

DENSE = ("dense_2.weight", "dense_3.weight")
DENSE_SIZES = tuple(f"dense_{i}_feat_{end}" for i in (2, 3) for end in ("in", "out"))
POOLING, CAUSAL, EPS = "pooling_type", "attention.causal", "attention.layer_norm_epsilon"
_RANK, _ENDS, _FOLDER = 4, (".weight", ".bias"), "serve its folder from Hugging Face, which has all of it"
_HEADS: Mapping[str, Mapping[str, str]] = {
    "bert": {"pooler.dense": "cls", "classifier": "cls.output"},
    "modernbert": {"head.dense": "cls", "head.norm": "cls.norm", "classifier": "cls.output"},
}
_ACTIVATION = "hidden_activation"
_POOLINGS: Mapping[Any, Pooling | None] = {None: None, 0: None, 1: "mean", 2: "first", 3: "last"}


def pooling_of(kind: Any, head: Mapping[str, str], where: str) -> Pooling | None:
    """The pooling for a file's `pooling_type`; None if it has none, or if there is a scoring head.

    Raises UnsupportedError.
    """
    if kind not in _POOLINGS and not (kind == _RANK and head):
        fact = f"{POOLING} = {kind!r} means a model that scores documents by what is not read, or nothing that is known"
        raise UnsupportedError(where, fact, _FOLDER)
    return None if head else _POOLINGS[kind]


def head_of(tensors: Mapping[str, Any], model_type: str, where: str) -> Mapping[str, str]:
    """The tensors of a scoring head, name in a folder -> name in the file, if any. Raises UnsupportedError."""
    there = [name in tensors for name in ("cls.weight", "cls.output.weight")]
    if model_type not in _HEADS or not any(there):
        return {}
    if not all(there):
        fact = "has a head that scores without its first layer (pooler.dense), which llama.cpp's converter leaves out"
        raise UnsupportedError(where, fact, _FOLDER)
    named = {f"{ours}{end}": f"{theirs}{end}" for ours, theirs in _HEADS[model_type].items() for end in _ENDS}
    return {ours: theirs for ours, theirs in named.items() if theirs in tensors}


def _rows(source: Source, name: str) -> int:
    found = source.tensors.get(name)
    return 0 if found is None else found.shape[0] if len(found.shape) == 2 else 1


def _shared(source: Source) -> dict[str, Any]:
    if source.keys.get(CAUSAL, False):
        fact = f"{CAUSAL} is true, so that tokens see those before them alone, which is not supported for an encoder"
        raise UnsupportedError(source.keys.where, fact, "use a model that was made to give vectors")
    return {"layer_norm_eps": source.keys.number(EPS), "type_vocab_size": _rows(source, "token_types.weight")}


def _bert(source: Source) -> dict[str, Any]:
    own = _shared(source) | {"hidden_act": "gelu", "position_embedding_type": "absolute"}
    return own | {"max_position_embeddings": _rows(source, "position_embd.weight")}


def _modernbert(source: Source) -> dict[str, Any]:
    keys, every = source.keys, source.keys.get(PATTERN, 3)
    if isinstance(every, list):
        types = [SLIDING if flag else FULL for flag in every]
    else:
        every = keys.count(PATTERN, 3)
        types = [SLIDING if layer % every else FULL for layer in range(source.num_layers)]
    thetas = {FULL: keys.number("rope.freq_base", 160_000.0), SLIDING: keys.number(LOCAL_THETA, 10_000.0)}
    return {
        "norm_eps": _shared(source)["layer_norm_eps"],
        "hidden_activation": keys.get(_ACTIVATION, "gelu"),
        "local_attention": keys.count(WINDOW),
        "layer_types": types,
        "classifier_pooling": "mean",  # as in llama.cpp
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
    }


ENCODERS: Mapping[str, Architecture] = {
    "bert": Architecture("bert", own=_bert, reads=(CAUSAL,)),
    "nomic-bert": Architecture("nomic_bert", own=_shared, reads=(CAUSAL,)),
    "eurobert": Architecture("eurobert", reads=(CAUSAL,)),
    "modern-bert": Architecture(
        "modernbert", own=_modernbert, reads=(CAUSAL, WINDOW, PATTERN, LOCAL_THETA, _ACTIVATION)
    ),
}

"""What a folder says of how its model scores a query and a document: the files of sentence-transformers.

    config_sentence_transformers.json    activation_fn, and what is put before a query, by the name of its use
    config.json                          sentence_transformers.activation_fn, or what it was called before
    tokenizer_config.json                model_max_length, and whether the model is told the texts of a pair apart
    sentence_bert_config.json            max_seq_length, do_lower_case

Knows nothing about models. Source: the files that CrossEncoder reads and writes (sbert.net).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.checkpoint.dense import Dense
from coterie.checkpoint.files import read_object_if_present
from coterie.checkpoint.sentence import (
    MODULES,
    PROMPTS,
    READING,
    Embedding,
    Pooling,
    is_sentence_model,
    module_kinds,
    prompts_of,
    reading_of,
)
from coterie.checkpoint.tokenizer import TOKENIZER_CONFIG
from coterie.core.errors import CheckpointError, UnsupportedError, shown

_BEFORE = "sbert_ce_default_activation_function"  # what older files call it


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a pair becomes a score besides what its `Embedding` says: pooled, and through layers to one number.

    `is_sigmoid`: of that number its sigmoid is given, between 0 and 1. `tells_apart`: tokens of the second text are of
    type 1, if the tokenizer says so. `pad_id`: a token that is passed over at the end of a pair, -1 for none.
    """

    is_sigmoid: bool = True
    tells_apart: bool = False
    pad_id: int = -1


def read_scoring(
    folder: Path, config: Mapping[str, Any], pooling: Pooling, layers: tuple[Dense, ...], most_tokens: int
) -> tuple[Embedding, Scoring]:
    """How a folder's model makes scores. `most_tokens`: that it takes of a pair.

    Raises CheckpointError for files that are damaged, UnsupportedError naming what would give other scores.
    """
    others = [kind for kind in module_kinds(folder) if kind != "Transformer"] if is_sentence_model(folder) else []
    if others:
        fact = f"has a module {others[0]}, which is not run in a model that scores"
        raise UnsupportedError(str(folder / MODULES), fact, "use a model whose only module is a Transformer")
    says = read_object_if_present(folder / TOKENIZER_CONFIG)
    max_tokens, lowered = reading_of(folder / READING)
    limits = [limit for limit in (max_tokens, says.get("model_max_length")) if isinstance(limit, int | float) and limit]
    prompts, usual = prompts_of(folder / PROMPTS)
    most = int(min(most_tokens, *limits)) if limits else most_tokens
    inputs = says.get("model_input_names")
    apart = not isinstance(inputs, list) or "token_type_ids" in inputs
    pad = config.get("pad_token_id")
    pad_id = pad if pooling == "last" and type(pad) is int else -1
    embedding = Embedding(pooling, False, prompts, usual, most, lowered, layers)
    return embedding, Scoring(_is_sigmoid(folder, config), apart, pad_id)


def _is_sigmoid(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether scores go through a sigmoid, as they do where nothing is said."""
    own = config.get("sentence_transformers")
    said = (
        read_object_if_present(folder / PROMPTS).get("activation_fn"),
        own.get("activation_fn") if isinstance(own, dict) else None,
        config.get(_BEFORE),
    )
    name = next((one for one in said if one is not None), "torch.nn.Sigmoid")
    if not isinstance(name, str):
        raise CheckpointError(str(folder), f"activation_fn is {shown(name)}", "it must be the name of a function")
    last = name.rpartition(".")[2]
    if last not in ("Sigmoid", "Identity"):
        fact = f"activation_fn is {shown(name)}, which is not run"
        raise UnsupportedError(str(folder), fact, "use a model whose scores are given as they are, or their sigmoid")
    return last == "Sigmoid"

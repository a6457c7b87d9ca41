"""Embeddings: which expert's vectors are meant, and how they are returned: truncated, and normalised.

Knows nothing about engines or HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.api.texts import Text
from coterie.api.types import Answer, Message, Query
from coterie.checkpoint.sentence import Embedding
from coterie.composition.composition import Composition
from coterie.core.errors import DeviceError, RequestError
from coterie.device import F32


def embedder(texts: Mapping[str, Text], composition: Composition, model: str) -> str:
    """The expert whose vectors are meant.

    That is the named one; for the composition's name, the only one that gives vectors alone, or the only expert.
    Raises NotFoundError for an unknown name, RequestError if there are several candidates.
    """
    if model and model != composition.name:
        return composition.expert(model).name
    embedding = [name for name, text in texts.items() if not (text.samples_tokens or text.scoring)]
    alone = [name for name in embedding if name in composition.names]
    found = alone or list(composition.names)
    if len(found) != 1:
        whose = "that give vectors alone" if alone else "and none that only gives vectors"
        fact = (
            f"{composition.name} has {len(found)} experts {whose}, and vectors of different experts are not comparable"
        )
        raise RequestError("model", fact, "name one of them")
    return found[0]


def query_of(text: str, expert: str, use: str = "", prompt_ids: Sequence[int] = ()) -> Query:
    """The query for an expert's vector of a text, or of given tokens."""
    return Query((Message("user", text),), expert, raw=True, embeds=True, prompt_name=use, prompt_ids=tuple(prompt_ids))


def output_vectors(answers: Sequence[Answer], text: Text, dimensions: int | None = None) -> F32:
    """The vectors [N, D] of an expert, normalised if it is made so; or truncated to `dimensions` and normalised.

    Raises RequestError for more dimensions than there are, and as `raw_vectors`.
    """
    if not answers:
        return np.zeros((0, 0), np.float32)
    vectors_ND = raw_vectors(answers, text)
    if dimensions is not None:
        if dimensions > vectors_ND.shape[1]:
            fact = f"is {dimensions}, but the vectors of {text.expert} have {vectors_ND.shape[1]}"
            raise RequestError("dimensions", fact, "ask for fewer")
        vectors_ND = vectors_ND[:, :dimensions]
    return normalised(vectors_ND) if text.embedding.normalized or dimensions is not None else vectors_ND


def raw_vectors(answers: Sequence[Answer], text: Text) -> F32:
    """An expert's pooled vectors after its dense layers [N, *], before normalisation.

    Raises CheckpointError, and DeviceError if the layers' result is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        vectors_ND = apply_layers(text.embedding, [answer.vector for answer in answers])
    if not np.isfinite(vectors_ND).all():
        fact = "a layer behind the pooling gives values that are not numbers"
        raise DeviceError(text.expert, fact, "the weights are damaged or overflow: get the checkpoint again")
    return vectors_ND


def apply_layers(embedding: Embedding, pooled: Sequence[Sequence[float]]) -> F32:
    """An expert's dense layers applied to pooled vectors [N, *], before normalisation. Raises CheckpointError."""
    vectors_ND = np.array([np.array(row, np.float32) for row in pooled], np.float32)  # by rows: lets other threads run
    for layer in embedding.layers:
        vectors_ND = layer.of(vectors_ND)
    return vectors_ND


def normalised(vectors_ND: F32) -> F32:
    """Vectors scaled to length one; zero vectors stay zero."""
    lengths_N1 = np.sqrt((vectors_ND.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    found: F32 = (vectors_ND / np.where(lengths_N1 > 0, lengths_N1, 1)).astype(np.float32)
    return found

"""A synthetic expert of any shape that writes plausible constrained answers, for measuring what forced tokens save.

    logit of a token = BONUS x its length (up to LETTERS) + a random term of it and the token before, by a fixed seed

So where the form allows few tokens, the longest one wins, as in natural text; free text consists of random tokens.
Knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

import coterie
from coterie.bench.repeating import EMBEDDING, HEAD, NORM, Tensors, bigram_expert
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.models.model import Model

TOKENS = 8192  # vocabulary of the tokenizer, if the shape's is not smaller
END_ID = 0
BONUS, LETTERS = 6.0, 3
BLANK = -30.0  # logit of tokens of only white space, which forms allow in many places

RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer_status": {"enum": ["active", "suspended", "closed"]},
        "has_outstanding_balance": {"type": "boolean"},
        "preferred_contact_method": {"enum": ["email", "telephone", "letter"]},
        "number_of_open_orders": {"type": "integer", "minimum": 0, "maximum": 99},
        "requires_manual_review": {"type": "boolean"},
        "department_responsible": {"enum": ["sales", "support", "accounting", "logistics"]},
    },
}
WORDS: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 120} for name in ("title", "summary", "next_steps")},
}
LIST: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"kind": {"enum": ["add", "remove"]}, "line": {"type": "integer", "minimum": 0, "maximum": 999}},
    },
    "minItems": 12,
    "maxItems": 12,
}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with all properties required and no additional ones allowed."""
    if "items" in schema:
        return {**schema, "items": _closed(schema["items"])}
    return {**schema, "required": list(schema["properties"]), "additionalProperties": False}


FORMS: Mapping[str, Mapping[str, Any]] = {
    "a record": _closed(RECORD),
    "a list of records": _closed(LIST),
    "free strings": _closed(WORDS),
}


@contextmanager
def forming_expert(config: Mapping[str, Any]) -> Iterator[tuple[Model, Tokenizer]]:
    """The expert in a temporary checkpoint folder, and its tokenizer, trained on Coterie's source.

    Raises UsageError for an unsuitable shape, CapacityError without room.
    """
    tokenizer = _trained(min(TOKENS, int(config["vocab_size"])))
    with bigram_expert(config, partial(_turn, tokenizer)) as (model, _):
        yield model, tokenizer


def _trained(size: int) -> Tokenizer:
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    library.train([str(file) for file in sorted(Path(coterie.__file__).parent.rglob("*.py"))], trainer)
    return Tokenizer(library)


def _turn(tokenizer: Tokenizer, tensors: Tensors) -> None:
    rng, embedding, head = np.random.default_rng(1), tensors[EMBEDDING], tensors[HEAD]
    count, width = embedding.shape
    common = np.zeros(width, np.float32)
    common[0] = width**0.5  # half of each embedding's squared norm
    own = rng.standard_normal((count, width)).astype(np.float32)
    own[:, 0] = 0
    embedding[:] = from_f32(common + own, DType.BF16).view(np.uint16)
    spelled = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    bonus = np.array([BLANK if not text.strip() else BONUS * min(len(text), LETTERS) for text in spelled], np.float32)
    norm = to_f32(tensors[NORM], DType.BF16)
    rows = rng.standard_normal((len(spelled), width)).astype(np.float32) * (2 / width) ** 0.5
    rows[:, 0] = bonus * (2 / width) ** 0.5 / norm[0]
    head[: len(spelled)] = from_f32(rows, DType.BF16).view(np.uint16)

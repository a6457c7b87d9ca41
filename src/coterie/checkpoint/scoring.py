"""Reads how a reranker scores a query and a document, from the files that sentence-transformers writes.

    config_sentence_transformers.json    activation_fn, and prompts (prefixes of a query) by name
    config.json                          sentence_transformers.activation_fn, or its older name
    tokenizer_config.json                model_max_length, and whether the model takes token types (query or document)
    sentence_bert_config.json            max_seq_length, do_lower_case; whether a pair is formatted as a chat
    chat_template.jinja                  if so: renders the roles "query", "document" and, for a prompt, "system"

Knows nothing about models. Source: the files that CrossEncoder reads and writes (sbert.net).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coterie.checkpoint.chat import ChatTemplate
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
from coterie.checkpoint.tokenizer import TOKENIZER_CONFIG, Tokenizer
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError, shown

_PROBES = "what is asked", "what may answer"
_BEFORE = "sbert_ce_default_activation_function"  # the key in older files


@dataclass(frozen=True, slots=True)
class PairChat:
    """Formats a pair as a chat of two messages.

    `as_parts`: their content is a list of parts, not a string. `generates`: add the generation prompt. `more`: other
    variables of the template.
    """

    template: ChatTemplate
    as_parts: bool = False
    generates: bool = False
    more: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def text(self, query: str, document: str, prompt: str = "") -> str:
        """The text that the model reads. Raises RequestError if the template refuses."""
        said = {**({"system": prompt} if prompt else {}), "query": query, "document": document}
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.as_parts else text}
            for role, text in said.items()
        ]
        return self.template.render(messages, self.generates, switches=self.more)

    def tokens(self, tokenizer: Tokenizer, query: str, document: str, prompt: str, max_tokens: int) -> list[int]:
        """The token ids of a pair, with the document truncated so that there are at most `max_tokens`.

        Raises RequestError if even an empty document leaves too many.
        """
        if tokenizer.has_more(query, max_tokens):
            fact = f"has more than the {max_tokens} tokens that the expert reads"
            raise RequestError("query", fact, "ask something shorter")
        document = tokenizer.cut(document, max_tokens)  # no more of it can be used, so do not render all of it
        ids = tokenizer.encode(self.text(query, document, prompt), False)
        count = len(tokenizer.encode(document, False)) if len(ids) > max_tokens else 0
        while len(ids) > max_tokens:
            if count == 0:
                fact = f"has {len(ids)} tokens without a document, and the expert reads {max_tokens}"
                raise RequestError("query", fact, "ask something shorter")
            count = max(count - (len(ids) - max_tokens), 0)
            ids = tokenizer.encode(self.text(query, tokenizer.beginning(document, count), prompt), False)
        return ids


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a pair becomes a score, in addition to its `Embedding` (pooling, then layers down to one number).

    `is_sigmoid`: the score is the sigmoid of that number, between 0 and 1. `uses_token_types`: pass the tokenizer's
    token types, 1 for the second text. `pad_id`: a token that is skipped at the end of a pair, -1 for none. `chat`: how
    the pair is formatted, if not by the tokenizer.
    """

    is_sigmoid: bool = True
    uses_token_types: bool = False
    pad_id: int = -1
    chat: PairChat | None = None


def read_scoring(
    folder: Path,
    config: Mapping[str, Any],
    pooling: Pooling,
    layers: tuple[Dense, ...],
    most_tokens: int,
    of_tokens: bool = False,
) -> tuple[Embedding, Scoring]:
    """Read a folder's Embedding and Scoring.

    `most_tokens`: the model's limit for a pair. `of_tokens`: the score comes from the logits of certain tokens.
    Raises CheckpointError for damaged files, UnsupportedError naming a setting that would change the scores.
    """
    run = ("Transformer", *(("LogitScore",) if of_tokens else ()))
    others = [kind for kind in module_kinds(folder) if kind not in run] if is_sentence_model(folder) else []
    if others:
        fact = f"has a module {others[0]}, which is not supported in a model that scores"
        raise UnsupportedError(str(folder / MODULES), fact, f"use a model of {' and '.join(run)} alone")
    says = read_object_if_present(folder / TOKENIZER_CONFIG)
    max_tokens, lowered = reading_of(folder / READING)
    limits = [limit for limit in (max_tokens, says.get("model_max_length")) if isinstance(limit, int | float) and limit]
    prompts, default_prompt = prompts_of(folder / PROMPTS)
    most = int(min(most_tokens, *limits)) if limits else most_tokens
    inputs = says.get("model_input_names")
    apart = not isinstance(inputs, list) or "token_type_ids" in inputs
    pad = config.get("pad_token_id")
    pad_id = pad if pooling == "last" and not of_tokens and type(pad) is int else -1
    embedding = Embedding(pooling, False, prompts, default_prompt, most, lowered, layers)
    return embedding, Scoring(_is_sigmoid(folder, config), apart, pad_id, _chat(folder, of_tokens))


def _chat(folder: Path, of_tokens: bool) -> PairChat | None:
    """The chat format of pairs, if the folder declares one, or if the model scores by logits and has a chat template.

    Raises UnsupportedError if the template does not render the query and the document.
    """
    reading, template = read_object_if_present(folder / READING), ChatTemplate.from_folder(folder)
    ways = reading.get("modality_config")
    way = ways.get("message") if isinstance(ways, dict) else {} if of_tokens and template is not None else None
    if way is None:
        return None
    if template is None:
        fact = "says that pairs are chats, and there is no chat template"
        raise UnsupportedError(str(folder / READING), fact, "download the folder again")
    own = reading.get("processing_kwargs")
    more = dict(own.get("chat_template") or {}) if isinstance(own, dict) else {}
    generates, as_parts = bool(more.pop("add_generation_prompt", False)), way.get("format", "flat") != "flat"
    more.pop("restore_suffix", None)
    found = PairChat(template, as_parts, generates, MappingProxyType(more))
    text = found.text(_PROBES[0], _PROBES[1])
    if any(probe not in text for probe in _PROBES):
        fact = "writes no messages whose roles are query and document"
        raise UnsupportedError(str(folder), f"its chat template {fact}", "use one that sentence-transformers saved")
    return found


def _is_sigmoid(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether scores go through a sigmoid, which is the default."""
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
        fact = f"activation_fn is {shown(name)}, which is not supported"
        raise UnsupportedError(str(folder), fact, "use a model whose scores are given as they are, or their sigmoid")
    return last == "Sigmoid"

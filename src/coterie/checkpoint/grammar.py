"""Grammars: which tokens of a tokenizer keep an answer in the form of a JSON schema, found by llguidance.

    schema -> grammar (once a request) -> allowed tokens | accept a token | allowed tokens | ... | complete

llguidance is imported when a form is first asked for. Knows nothing about models, logits or requests' texts.
Source: github.com/guidance-ai/llguidance, docs/json_schema.md.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import RequestError

ANY_OBJECT = '{"type": "object"}'
# Blanks between JSON's parts, but never without end: a model that has nothing to say would else write them for ever.
BLANKS = r"[\x20\x0A\x0D\x09]{1,16}"
FIELD = "response_format"


class _Vocabulary:
    """An expert's tokens as llguidance wants them."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = end_ids[0], None
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_ids, *end_ids})

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode(), add_special_tokens=False)


class Grammar:
    """Masks for one tokenizer: ends are allowed where, and only where, the form is complete."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: tuple[int, ...]) -> None:
        self._llguidance: Any = importlib.import_module("llguidance")
        self._vocab_size = vocab_size
        # Without an end of its own an expert gets one behind its vocabulary, which is never drawn.
        ends = end_ids or (vocab_size,)
        tokens = vocab_size + (not end_ids)
        made = self._llguidance.TokenizerWrapper(_Vocabulary(tokenizer, tokens, ends))
        self._tokens = self._llguidance.LLTokenizer(made, n_vocab=tokens, eos_token=list(ends))

    def mask(self, schema: str) -> JsonMask:
        """A mask for one answer in the form of a JSON schema. Raises RequestError for what cannot be enforced."""
        matcher_type = self._llguidance.LLMatcher
        try:
            json.loads(schema)
            grammar = matcher_type.grammar_from_json_schema(schema, overrides={"whitespace_pattern": BLANKS})
        except ValueError as error:
            raise RequestError(FIELD, f"has no JSON schema: {error}", "give a JSON object") from error
        wrong = matcher_type.validate_grammar(grammar, self._tokens)
        if wrong:
            raise RequestError(FIELD, f"has a schema that cannot be enforced: {_line(wrong)}", "change the schema")
        return JsonMask(matcher_type(self._tokens, grammar, log_level=0), self._vocab_size)


class JsonMask:
    """Which tokens may come next in one answer: a `Mask` of the engine."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """For each token whether it may come next. Raises RequestError when none may."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)
        if self._matcher.is_error() or not found.any():
            fact = f"leads to where no token may come: {_line(self._matcher.get_error())}"
            raise RequestError(FIELD, fact, "simplify the schema")
        return found

    def accept(self, token: int) -> None:
        """This token has come. Raises RequestError when it might not."""
        if not self._matcher.consume_token(token):
            raise RequestError(FIELD, f"does not take token {token}: {_line(self._matcher.get_error())}", "report it")

    @property
    def complete(self) -> bool:
        """True when nothing may follow."""
        return bool(self._matcher.is_stopped())


@lru_cache(maxsize=16)
def grammar_of(tokenizer: Tokenizer, vocab_size: int, end_ids: tuple[int, ...]) -> Grammar:
    """The grammar of a tokenizer, kept: to lay out a large vocabulary takes a second."""
    return Grammar(tokenizer, vocab_size, end_ids)


def _line(text: str) -> str:
    """The first line of a message, shortened."""
    return " ".join(text.split("\n<state>", maxsplit=1)[0].split())[:200]

"""Grammars: which tokens of a tokenizer keep an answer in its form: a JSON schema, calls or others; by llguidance.

    schema -> grammar (once a request) -> allowed tokens | accept a token | allowed tokens | ... | complete

llguidance is imported when a form is first asked for. Knows nothing about models, logits or requests' texts.
Source: github.com/guidance-ai/llguidance, docs/json_schema.md.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.calls import Calling
from coterie.checkpoint.constrained import argument_schema, is_strict
from coterie.checkpoint.constraint import Constraint
from coterie.checkpoint.forms import Form
from coterie.checkpoint.speech import Speech
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.checkpoint.width import check_width
from coterie.core.errors import RequestError

ANY_OBJECT = '{"type": "object"}'
# Blanks between JSON's parts, but never without end: a model that has nothing to say would else write them for ever.
BLANKS = r"[\x20\x0A\x0D\x09]{1,16}"
GUARD = "\x02"  # a character that merges with no other
KEPT = 16  # grammars
MANY = 8  # where one of so many tokens of the vocabulary may come, the text is free
MAX_SYMBOLS = 40_000  # of a grammar: 10,000 properties that are required, or 5,000 that are not, in two seconds
# Of forms that are no schema, whose counts may be nested: else one of ((x{1000}){1000}){1000} takes 3 s and 240 MB.
LEXER_FUEL, LEXER_STATES = 100_000, 50_000
FIELD, TOOLS = "response_format", "tools"
PLAIN = Speech()


class _Vocabulary:
    """An expert's tokens as llguidance wants them."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = end_ids[0], None
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_ids, *end_ids})
        self._marks = [self.tokens[token].decode() for token in tokenizer.special_ids if token < vocab_size]
        self._guard = tokenizer.encode(GUARD, add_special_tokens=False)

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of a text within an answer, whose bytes are just those of the text.

        None is special: what spells one, within a string of JSON, is but letters.
        """
        whole = text if isinstance(text, str) else text.decode()
        parts = [whole]
        for mark in self._marks:
            if mark in whole:
                parts = [piece for part in parts for piece in _cut(part, mark)]
        return [token for part in parts for token in self._within(part)]

    def _within(self, text: str) -> list[int]:
        """Many tokenizers put a space before a text, which is none here: then the text has something before it."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if self._spells(ids, text):
            return ids
        ids = self._tokenizer.encode(GUARD + text, add_special_tokens=False)[len(self._guard) :]
        if self._spells(ids, text):
            return ids
        known = {spelled: token for token, spelled in enumerate(self.tokens) if len(spelled) == 1}
        single = [known.get(bytes([byte])) for byte in text.encode()]
        return ids if None in single else [token for token in single if token is not None]

    def _spells(self, ids: Sequence[int], text: str) -> bool:
        ours = all(token < len(self.tokens) for token in ids)
        return ours and b"".join([self.tokens[token] for token in ids]) == text.encode()


class Grammar:
    """Masks for one tokenizer: ends are allowed where, and only where, the form is complete."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: tuple[int, ...]) -> None:
        llguidance: Any = importlib.import_module("llguidance")
        self._llmatcher = llguidance.LLMatcher
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        # Without an end of its own an expert gets one behind its vocabulary, which is never drawn.
        ends = end_ids or (vocab_size,)
        tokens = vocab_size + (not end_ids)
        made = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, tokens, ends))
        self._tokens = llguidance.LLTokenizer(made, n_vocab=tokens, eos_token=list(ends))
        # Kept for the next answer: a long list of tools takes a tenth of a second.
        limits = llguidance.LLParserLimits(max_grammar_size=MAX_SYMBOLS)
        close = llguidance.LLParserLimits(
            max_grammar_size=MAX_SYMBOLS, initial_lexer_fuel=LEXER_FUEL, max_lexer_states=LEXER_STATES
        )
        self._begin = lru_cache(KEPT)(
            lambda grammar, is_close=False: self._llmatcher(
                self._tokens, grammar, log_level=0, limits=close if is_close else limits
            )
        )
        self._lark = lru_cache(KEPT)(Constraint.lark)

    def mask(self, schema: str, speech: Speech = PLAIN) -> FormMask:
        """A mask for one answer in the form of a JSON schema. Raises RequestError for what cannot be enforced."""
        try:
            check_width(json.loads(schema), FIELD)
        except ValueError as error:
            raise RequestError(FIELD, f"has no JSON schema: {error}", "give a JSON object") from error
        alone = self._made(self._of_schema(schema, FIELD), FIELD)
        if speech.plain:
            return alone
        answer = {**_object_of(schema), "x-guidance": _how(True)}
        lark = speech.answer(f"%json {json.dumps(answer)}", self._special)
        return self._made(self._llmatcher.grammar_from_lark(lark), FIELD)

    def constrained(self, constraint: Constraint, speech: Speech = PLAIN) -> FormMask:
        """A mask for one answer in a form that is no schema. Raises RequestError for what cannot be enforced."""
        own = {"name": "form", "lark_grammar": self._lark(constraint)}
        around = [] if speech.plain else [{"name": "around", "lark_grammar": speech.answer("@form", self._special)}]
        for parts in ([own], [*around, own])[: 1 + len(around)]:  # its own errors first
            begun = self._begin(json.dumps({"grammars": parts}), True)
            if begun.is_error():
                raise constraint.refusal(begun.get_error())
        mask = FormMask(begun.deep_copy(), self._vocab_size, constraint.field, "form")
        mask.allowed()
        return mask

    def calls(
        self,
        form: Form,
        tools: Sequence[Mapping[str, Any]],
        calling: Calling,
        schema: str = "",
        speech: Speech = PLAIN,
    ) -> FormMask:
        """A mask for one answer that calls tools in a form; where it calls none, it has that of a JSON schema, if any.

        `speech`: what else an answer has. Raises RequestError for what cannot be enforced.
        """
        arguments = {}
        for place, tool in enumerate(tools):
            name, where = tool["function"]["name"], f"tools[{place}].function.parameters"
            if not calling.only or name in calling.only:
                arguments[name] = argument_schema(tool, calling.required, where), is_strict(tool), where
                check_width(arguments[name][0], where)
                if form.layout is not None and is_strict(tool):
                    form.layout.check(arguments[name][0], where)
        schemas = {name: {**its, "x-guidance": _how(strict)} for name, (its, strict, _) in arguments.items()}
        answer = {**_object_of(schema), "x-guidance": _how(True)} if schema else None
        grammar = self._llmatcher.grammar_from_lark(speech.calls(form, schemas, calling, self._special, answer))
        if self._begin(grammar).is_error():  # then it is told whose
            for its, strict, where in arguments.values():
                self._made(self._of_schema(json.dumps(its), where, strict), where)
            if schema:
                self.mask(schema)
        return self._made(grammar, TOOLS)

    def _special(self, text: str) -> int | None:
        token = self._tokenizer.token_id(text)
        return token if token in self._tokenizer.special_ids else None

    def _of_schema(self, schema: str, field: str, strict: bool = True) -> str:
        try:
            found = self._llmatcher.grammar_from_json_schema(schema, overrides=_how(strict))
        except ValueError as error:
            raise RequestError(field, f"has no JSON schema: {error}", "give a JSON object") from error
        return str(found)

    def _made(self, grammar: str, field: str) -> FormMask:
        begun = self._begin(grammar)
        if begun.is_error():
            fact = f"has a schema that cannot be enforced: {_line(begun.get_error())}"
            raise RequestError(field, fact, "change the schema")
        mask = FormMask(begun.deep_copy(), self._vocab_size, field)
        mask.allowed()  # a schema that is but a reference to itself is followed, and begins nowhere
        return mask


class FormMask:
    """Which tokens may come next in one answer: a `Mask` of the engine.

    `field`: which of a request's gave the form; `noun`: what that is.
    """

    def __init__(self, matcher: Any, vocab_size: int, field: str, noun: str = "schema") -> None:
        self._matcher, self._vocab_size, self._field, self._noun = matcher, vocab_size, field, noun
        self._forced: tuple[int, ...] | None = None  # until somebody asks
        self._bits: bytes | None = None  # likewise

    def allowed(self) -> npt.NDArray[np.bool_]:
        """For each token whether it may come next. Raises RequestError when none may."""
        found = np.unpackbits(np.frombuffer(self._allowed(), np.uint8), bitorder="little")[: self._vocab_size].astype(
            np.bool_
        )
        if self._matcher.is_error() or not found.any():
            fact = f"leads to where no token may come: {_line(self._matcher.get_error())}"
            raise RequestError(self._field, fact, f"simplify the {self._noun}")
        return found

    def accept(self, token: int) -> None:
        """This token has come. Raises RequestError when it might not."""
        self._forced = self._bits = None
        if not self._matcher.consume_token(token):
            fact = f"does not take token {token}: {_line(self._matcher.get_error())}"
            raise RequestError(self._field, fact, f"simplify the {self._noun}")

    def forced(self) -> tuple[int, ...]:
        """Tokens known to come next, in this order.

        Bytes that the form forces are spelled as the tokenizer spells them, up to where a longer token could begin; of
        that spelling llguidance's mask leaves the first token alone, and so on behind it.
        """
        if self._forced is None:
            found = self._matcher.compute_ff_tokens()
            count = next((place for place, token in enumerate(found) if token >= self._vocab_size), len(found))
            self._forced = tuple(found[:count])
        return self._forced

    def few(self) -> bytes | None:
        """Which tokens may come next, to be compared; None where so many may that what came before tells nothing."""
        bits = self._allowed()
        return bits if int.from_bytes(bits, "little").bit_count() * MANY < self._vocab_size else None

    def copy(self) -> FormMask:
        """One of the same state, by which to see what may come later; takes 2 us."""
        made = FormMask(self._matcher.deep_copy(), self._vocab_size, self._field, self._noun)
        made._forced, made._bits = self._forced, self._bits
        return made

    def take(self, tokens: Sequence[int]) -> int:
        """Accept these tokens, in order, up to the first one that may not come; how many."""
        self._forced = self._bits = None
        return int(self._matcher.try_consume_tokens(list(tokens)))

    @property
    def complete(self) -> bool:
        """True when nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _allowed(self) -> bytes:
        """A bit for each token."""
        if self._bits is None:
            self._bits = bytes(self._matcher.compute_bitmask())
        return self._bits


@lru_cache(maxsize=16)
def grammar_of(tokenizer: Tokenizer, vocab_size: int, end_ids: tuple[int, ...]) -> Grammar:
    """The grammar of a tokenizer, kept: to lay out a large vocabulary takes a second."""
    return Grammar(tokenizer, vocab_size, end_ids)


def _how(strict: bool) -> dict[str, Any]:
    """How a schema is kept: to the letter, or but for keywords that cannot be enforced."""
    return {"whitespace_pattern": BLANKS, "lenient": not strict}


def _object_of(schema: str) -> dict[str, Any]:
    try:
        found = json.loads(schema)
    except ValueError as error:
        raise RequestError(FIELD, f"has no JSON schema: {error}", "give a JSON object") from error
    if not isinstance(found, dict):
        raise RequestError(FIELD, f"has a schema that is a JSON {type(found).__name__}", "give a JSON object")
    return found


def _cut(text: str, mark: str) -> list[str]:
    """Pieces of a text, each occurrence of a mark cut behind its first letter."""
    first, *others = text.split(mark)
    pieces = [first]
    for other in others:
        pieces[-1] += mark[:1]
        pieces.append(mark[1:] + other)
    return pieces


def _line(text: str) -> str:
    """The first line of a message, shortened."""
    return " ".join(text.split("\n<state>", maxsplit=1)[0].split())[:200]

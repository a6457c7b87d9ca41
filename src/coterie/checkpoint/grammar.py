"""Constrained decoding: which tokens keep an answer within a JSON schema, tool calls or another form; by llguidance.

    schema -> grammar (once per request) -> allowed tokens | accept a token | allowed tokens | ... | complete

llguidance is imported on first use.
Knows nothing about models, logits or the texts of requests.
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

from coterie.checkpoint.answer_structure import AnswerStructure
from coterie.checkpoint.calls import Calling
from coterie.checkpoint.constrained import argument_schema, is_strict
from coterie.checkpoint.constraint import Constraint
from coterie.checkpoint.forms import Form
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.checkpoint.width import check_width
from coterie.core.errors import RequestError

ANY_OBJECT = '{"type": "object"}'
# White space between the parts of JSON, bounded: a model at a loss would otherwise write it forever.
BLANKS = r"[\x20\x0A\x0D\x09]{1,16}"
GUARD = "\x02"  # a character that merges with no other
KEPT = 16  # compiled grammars that are cached
MANY = 8  # if at least 1 in this many tokens of the vocabulary is allowed, the text counts as free
MAX_SYMBOLS = 40_000  # of a grammar: some 10,000 required or 5,000 optional properties, compiled in two seconds
# For forms other than schemas, whose repetitions may nest: ((x{1000}){1000}){1000} would take 3 s and 240 MB.
LEXER_FUEL, LEXER_STATES = 100_000, 50_000
FIELD, TOOLS = "response_format", "tools"
PLAIN = AnswerStructure()


class _Vocabulary:
    """An expert's vocabulary, in the interface that llguidance expects."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = end_ids[0], None
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_ids, *end_ids})
        self._marks = [self.tokens[token].decode() for token in tokenizer.special_ids if token < vocab_size]
        self._guard = tokenizer.encode(GUARD, add_special_tokens=False)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ordinary token ids that spell exactly this text within an answer.

        Text that spells a special token, for example in a JSON string, is not encoded as that token.
        """
        whole = text if isinstance(text, str) else text.decode()
        parts = [whole]
        for mark in self._marks:
            if mark in whole:
                parts = [piece for part in parts for piece in _cut(part, mark)]
        return [token for part in parts for token in self._within(part)]

    def _within(self, text: str) -> list[int]:
        """Encode a text without the space that many tokenizers prepend, after a guard character if need be."""
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
    """Makes token masks for one tokenizer. End tokens are allowed if, and only if, the form is complete."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: tuple[int, ...]) -> None:
        llguidance: Any = importlib.import_module("llguidance")
        self._llmatcher = llguidance.LLMatcher
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        # An expert without an end token gets one past its vocabulary, which is never sampled.
        ends = end_ids or (vocab_size,)
        tokens = vocab_size + (not end_ids)
        made = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, tokens, ends))
        self._tokens = llguidance.LLTokenizer(made, n_vocab=tokens, eos_token=list(ends))
        # Cached for the next answer: compiling a long list of tools takes a tenth of a second.
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

    def mask(self, schema: str, structure: AnswerStructure = PLAIN) -> FormMask:
        """A mask for one answer that follows a JSON schema. Raises RequestError if it cannot be enforced."""
        try:
            check_width(json.loads(schema), FIELD)
        except ValueError as error:
            raise RequestError(FIELD, f"has no JSON schema: {error}", "give a JSON object") from error
        alone = self._made(self._of_schema(schema, FIELD), FIELD)
        if structure.plain:
            return alone
        answer = {**_object_of(schema), "x-guidance": _how(True)}
        lark = structure.answer(f"%json {json.dumps(answer)}", self._special)
        return self._made(self._llmatcher.grammar_from_lark(lark), FIELD)

    def constrained(self, constraint: Constraint, structure: AnswerStructure = PLAIN) -> FormMask:
        """A mask for one answer under a constraint. Raises RequestError if it cannot be enforced."""
        own = {"name": "form", "lark_grammar": self._lark(constraint)}
        around = (
            [] if structure.plain else [{"name": "around", "lark_grammar": structure.answer("@form", self._special)}]
        )
        for parts in ([own], [*around, own])[: 1 + len(around)]:  # alone first, so that errors are about the constraint
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
        structure: AnswerStructure = PLAIN,
    ) -> FormMask:
        """A mask for one answer that may call tools, in this form; an answer without calls follows `schema`, if given.

        `structure`: what surrounds the form in an answer. Raises RequestError for what cannot be enforced.
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
        grammar = self._llmatcher.grammar_from_lark(structure.calls(form, schemas, calling, self._special, answer))
        if self._begin(grammar).is_error():  # compile the parts one by one to report which is at fault
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
        mask.allowed()  # raises for a schema that only refers to itself, which compiles but allows no token
        return mask


class FormMask:
    """The tokens allowed next in one answer; implements the engine's `Mask`.

    `field`: the request's field that gave the form; `noun`: what to call the form in errors.
    """

    def __init__(self, matcher: Any, vocab_size: int, field: str, noun: str = "schema") -> None:
        self._matcher, self._vocab_size, self._field, self._noun = matcher, vocab_size, field, noun
        self._forced: tuple[int, ...] | None = None  # computed on demand
        self._bits: bytes | None = None  # likewise

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Whether each token is allowed next [V]. Raises RequestError if none is."""
        found = np.unpackbits(np.frombuffer(self._allowed(), np.uint8), bitorder="little")[: self._vocab_size].astype(
            np.bool_
        )
        if self._matcher.is_error() or not found.any():
            fact = f"leads to where no token may come: {_line(self._matcher.get_error())}"
            raise RequestError(self._field, fact, f"simplify the {self._noun}")
        return found

    def accept(self, token: int) -> None:
        """Advance by this token. Raises RequestError if it was not allowed."""
        self._forced = self._bits = None
        if not self._matcher.consume_token(token):
            fact = f"does not take token {token}: {_line(self._matcher.get_error())}"
            raise RequestError(self._field, fact, f"simplify the {self._noun}")

    def forced(self) -> tuple[int, ...]:
        """The tokens that the form forces next, in order.

        Forced bytes are tokenized as the tokenizer would, up to where a longer token could still begin. llguidance's
        mask agrees: at each of these positions it allows only the forced token.
        """
        if self._forced is None:
            found = self._matcher.compute_ff_tokens()
            count = next((place for place, token in enumerate(found) if token >= self._vocab_size), len(found))
            self._forced = tuple(found[:count])
        return self._forced

    def choice_key(self) -> bytes | None:
        """The allowed set as a bit mask, for comparison; None if so many tokens are allowed that it tells nothing."""
        bits = self._allowed()
        return bits if int.from_bytes(bits, "little").bit_count() * MANY < self._vocab_size else None

    def copy(self) -> FormMask:
        """A copy of the current state, to look ahead with; takes 2 us."""
        made = FormMask(self._matcher.deep_copy(), self._vocab_size, self._field, self._noun)
        made._forced, made._bits = self._forced, self._bits
        return made

    def accept_prefix(self, tokens: Sequence[int]) -> int:
        """Accept these tokens in order, up to the first that is not allowed; returns how many."""
        self._forced = self._bits = None
        return int(self._matcher.try_consume_tokens(list(tokens)))

    @property
    def complete(self) -> bool:
        """True if the form is complete and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _allowed(self) -> bytes:
        """The bit mask of allowed tokens, one bit each."""
        if self._bits is None:
            self._bits = bytes(self._matcher.compute_bitmask())
        return self._bits


@lru_cache(maxsize=16)
def grammar_of(tokenizer: Tokenizer, vocab_size: int, end_ids: tuple[int, ...]) -> Grammar:
    """The Grammar of a tokenizer, cached: preparing a large vocabulary takes a second."""
    return Grammar(tokenizer, vocab_size, end_ids)


def _how(strict: bool) -> dict[str, Any]:
    """llguidance's options for a schema; not `strict`: keywords that cannot be enforced are ignored."""
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
    """Split a text after the first character of each occurrence of a mark."""
    first, *others = text.split(mark)
    pieces = [first]
    for other in others:
        pieces[-1] += mark[:1]
        pieces.append(mark[1:] + other)
    return pieces


def _line(text: str) -> str:
    """The first line of a message, shortened."""
    return " ".join(text.split("\n<state>", maxsplit=1)[0].split())[:200]

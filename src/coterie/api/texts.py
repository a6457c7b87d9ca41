"""Text to tokens and back, per expert: tokenizer and chat template, read when the composition is opened.

Knows nothing about engines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from coterie.api.types import Query
from coterie.checkpoint.answer_structure import AnswerStructure
from coterie.checkpoint.calls import CallReader, CallText
from coterie.checkpoint.channels import ChannelText
from coterie.checkpoint.chat import MORE_TEMPLATES, ChatTemplate
from coterie.checkpoint.constrained import ConstrainedCallText, is_constrained, is_strict
from coterie.checkpoint.constraint import Constraint
from coterie.checkpoint.forms import Form
from coterie.checkpoint.grammar import grammar_of
from coterie.checkpoint.infill import InfillMarks, infill_marks
from coterie.checkpoint.layout import FileIdentity
from coterie.checkpoint.scoring import Scoring, read_scoring
from coterie.checkpoint.sentence import Embedding, is_sentence_model, read_embedding
from coterie.checkpoint.thoughts import ThoughtText
from coterie.checkpoint.tokenizer import TOKENIZER_CONFIG, Detokenizer, Tokenizer, has_tokenizer
from coterie.checkpoint.unmarked import UnmarkedText
from coterie.checkpoint.vocabulary import none_evicted
from coterie.checkpoint.wordpiece import VOCABULARY
from coterie.composition.composition import Composition
from coterie.composition.router import Prompt
from coterie.core.errors import RequestError, UnsupportedError, shown
from coterie.engine.request import ChoiceParams
from coterie.engine.served import too_long
from coterie.models.model import Model

_SIDE_FILES = ("*.json", "*.jinja", VOCABULARY, f"{MORE_TEMPLATES}/*.jinja", "[0-9]_*/*")  # last: 1_Pooling, 2_Dense
DEFAULT_EMBEDDING = Embedding("mean")  # mean pooling separates texts better (docs/log.md)
GIVES_VECTORS = "only gives vectors (embeddings), and generates no text"
SCORES = "only scores documents (reranking), and generates no text"
_LAST = 16  # trailing prompt tokens searched for the opening mark of a thought


@dataclass(frozen=True, slots=True)
class Text:
    """How one expert reads and writes. An expert without bytes has no tokenizer: its prompts are counted in bytes.

    `files`: those beside its weights, as they were when read.
    `embedding`: how it makes vectors of texts; `samples_tokens` False: it generates no text. `scoring`: for a
    model that only scores pairs, how the vector of a pair becomes a score.
    """

    expert: str
    vocab_size: int
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    files: Mapping[Path, FileIdentity] = field(default_factory=dict, compare=False)
    embedding: Embedding = DEFAULT_EMBEDDING
    samples_tokens: bool = True
    scoring: Scoring | None = None

    @property
    def is_read(self) -> bool:
        """Whether its vocabulary is in memory; an evicted one takes a while to be read again."""
        return self.tokenizer is None or self.tokenizer.is_read

    def encode(self, query: Query, prompt: Prompt, max_tokens: int = 0, limit: int = 0) -> tuple[int, ...]:
        """The prompt's tokens; for an embedding, at most `max_tokens` if that is not 0.

        Raises RequestError if there are none or a template is lacking; ContextError if surely more than `limit`.
        """
        if why := self._not_made_for(query):
            other = "" if query.ranks else "ask it to rerank, or " if self.scoring else "ask it for embeddings, or "
            raise RequestError(self.expert, why, f"{other}name another expert")
        if query.prompt_ids:
            return self._checked(query.prompt_ids)
        if query.ranks:
            return self._pair(query)[0]
        text, tokenizer = self._render(query, prompt), self.tokenizer
        text = text.lower() if query.embeds and self.embedding.lowered else text
        within = [count for count in (self.embedding.max_tokens, max_tokens) if count and query.embeds]
        if tokenizer is None:
            ids = tuple(byte % self.vocab_size for byte in text.encode())
        elif within:
            ids = tuple(tokenizer.encode_within(text, min(within)))
        elif limit and tokenizer.has_more(text, limit):
            fact = f"{len(text)} characters, more than {limit} tokens,"
            raise too_long(self.expert, fact, limit + self.samples_tokens, limit)
        else:
            ids = tuple(tokenizer.encode(text, query.embeds or query.raw or self.template is None))
        if not ids:
            raise RequestError("prompt", "has no tokens", "write a question")
        return ids

    def types(self, query: Query) -> tuple[int, ...]:
        """Token type ids of a pair; empty if the expert does not use them."""
        return self._pair(query)[1] if query.ranks and self.scoring and self.scoring.uses_token_types else ()

    def decode(self, ids: Sequence[int], field: str = "prompt", special: bool = False) -> str:
        """The text of tokens, with or without `special` ones. Raises RequestError naming `field` for invalid ones."""
        checked = self._checked(ids, field)
        if self.tokenizer is None:
            return bytes(token % 256 for token in checked).decode(errors="replace")
        return self.tokenizer.spelled(checked) if special else self.tokenizer.decode(checked)

    def detokenizer(self, query: Query, prompt_ids: Sequence[int]) -> Detokenizer | None:
        """A new one for one answer. If tools are offered, the marks of a call are shown, even as special tokens.

        For messages it separates reasoning from the answer; in a plain continuation it keeps the first word's space.
        """
        if self.tokenizer is None:
            return None
        structure, form = self._structure(query, prompt_ids), self._calls_form(query)
        shown = () if form is None else form.marks
        if structure.channels:
            found: Detokenizer = ChannelText(self.tokenizer, calls=form is not None)
        elif structure.marks is None:
            found = self.tokenizer.detokenizer(shown)
        else:
            kept = self.tokenizer.among(*shown, structure.marks.opening, structure.marks.closing)
            found = ThoughtText(self.tokenizer, structure.marks, structure.is_opened, kept)
        if query.continues or not self.chats(query):
            found.follow(prompt_ids)
        return found

    def chats(self, query: Query) -> bool:
        """Whether a chat template tells the expert where an answer ends."""
        return not (query.raw or self.template is None)

    def thinks(self, query: Query) -> bool:
        """Whether reasoning may precede an answer."""
        return not (query.raw or self.template is None) and (self.template.has_channels or bool(self.template.thoughts))

    def unfit(self, query: Query) -> str:
        """Why this expert cannot take a query that a router may send elsewhere; empty: it can."""
        if why := self._not_made_for(query):
            return why
        if query.raw:
            return "has no fill-in-the-middle tokens" if query.suffix and self._marks() is None else ""
        if query.tools and (self.template is None or self.template.form is None):
            return "takes no tools"
        return "has no chat template for several messages" if self.template is None and len(query.messages) > 1 else ""

    def choice(self, query: Query, prompt_ids: Sequence[int], end_ids: tuple[int, ...]) -> ChoiceParams:
        """How an answer's tokens are chosen, including its grammar.

        Raises RequestError for invalid constraints, UnsupportedError for any without a tokenizer.
        """
        held = is_constrained(query.tools, query.calling)
        if not (query.form or held):
            return query.choice
        given = query.form if isinstance(query.form, Constraint) else None
        if given is not None and query.tools:
            fact = "constrains the whole answer, but tools are offered, whose calls have another form"
            raise RequestError(given.field, fact, 'leave one of the two out, or set tool_choice to "none"')
        field = "tools" if held else "response_format" if given is None else given.field
        if query.continues:
            fact = "constrain the whole answer" if held else "constrains the whole answer"
            raise RequestError(field, f"{fact}, and its beginning is given", "leave one of the two out")
        if self.tokenizer is None:
            raise UnsupportedError(field, f"{self.expert} has no tokenizer to constrain answers by", "leave it out")
        grammar, form = grammar_of(self.tokenizer, self.vocab_size, end_ids), self._calls_form(query)
        structure = self._structure(query, prompt_ids)
        if isinstance(query.form, Constraint):
            mask = grammar.constrained(query.form, structure)
        elif form is None:
            mask = grammar.mask(query.form, structure)
        else:
            mask = grammar.calls(form, query.tools, query.calling, query.form, structure)
        return replace(query.choice, mask=mask)

    def ends(self, query: Query, end_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens that end the answer: `end_ids`, and for fill-in-the-middle the marks around the gap."""
        if not query.suffix or self.tokenizer is None:
            return end_ids
        return tuple(dict.fromkeys((*end_ids, *self._infill().ends(self.tokenizer.token_id))))

    def prediction(self, query: Query) -> tuple[int, ...]:
        """The tokens of the predicted text; none without a tokenizer."""
        if self.tokenizer is None or not query.prediction:
            return ()
        return _tokens_of(self.tokenizer, query.prediction)

    def calls(self, query: Query) -> CallReader | None:
        """A reader of the tool calls in one answer; None if no tools are offered."""
        form, functions = self._calls_form(query), [tool["function"] for tool in query.tools]
        if form is None:
            return None
        tools = {function["name"]: function.get("parameters") or {} for function in functions}
        held = query.form or is_constrained(query.tools, query.calling)
        apart = bool(query.form) and not query.calling.required
        calling = query.calling
        if not held or form.layout is not None:
            reader = CallText(form, tools, query.continues)
        else:
            reader = ConstrainedCallText(form, tools, apart, calling.required)
        if not form.unmarked or query.continues or query.form or calling.required or any(map(is_strict, query.tools)):
            return reader
        return UnmarkedText(reader, calling.only or tuple(tools), calling.several)

    def _not_made_for(self, query: Query) -> str:
        """Why this expert cannot do this kind of task at all; empty: it can."""
        if query.ranks:
            return "" if self.scoring else "was not made to score documents (reranking)"
        if self.scoring:
            return SCORES
        return "" if query.embeds or self.samples_tokens else GIVES_VECTORS

    def _pair(self, query: Query) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens and type ids of a query and a document. Raises RequestError."""
        if self.tokenizer is None or self.scoring is None:
            raise RuntimeError(f"{self.expert} reads no pairs")
        asked, document = [one.content for one in query.messages]
        before, chat = self.embedding.prompt(query.prompt_name), self.scoring.chat
        max_tokens = self.embedding.max_tokens
        if chat is not None:
            return tuple(chat.tokens(self.tokenizer, asked, document, before, max_tokens)), ()
        first, second = before + asked, document
        if self.embedding.lowered:
            first, second = first.lower(), second.lower()
        return _pair_of(self.tokenizer, first, second, max_tokens, self.scoring.pad_id)

    def _structure(self, query: Query, prompt_ids: Sequence[int]) -> AnswerStructure:
        """The parts of an answer to messages besides its text: channels, or reasoning."""
        if self.template is None or self.tokenizer is None or not self.thinks(query):
            return AnswerStructure()
        marks = self.template.thoughts
        if self.template.has_channels or marks is None:
            return AnswerStructure(channels=True)
        if query.continues:
            return AnswerStructure(marks, True) if marks.left_open_by(query.messages[-1].content) else AnswerStructure()
        return AnswerStructure(marks, marks.opened_by(self.tokenizer.spelled(prompt_ids[-_LAST:])))

    def _marks(self) -> InfillMarks | None:
        return None if self.tokenizer is None else infill_marks(self.tokenizer.token_id)

    def _infill(self) -> InfillMarks:
        marks = self._marks()
        if marks is None:
            fact = f"is given, but {self.expert} has no fill-in-the-middle tokens"
            raise RequestError("suffix", fact, "leave it out, or name an expert that was made for it")
        return marks

    def _calls_form(self, query: Query) -> Form | None:
        return self.template.form if self.template is not None and query.tools else None

    def _checked(self, ids: Sequence[int], field: str = "prompt") -> tuple[int, ...]:
        for place, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                fact = f"token {place} is {shown(token)}"
                raise RequestError(field, fact, f"{self.expert} has tokens 0 to {self.vocab_size - 1}")
        return tuple(ids)

    def _render(self, query: Query, prompt: Prompt) -> str:
        if query.raw:
            before = str(prompt.messages[-1]["content"])
            if query.embeds:
                return self.embedding.prompt(query.prompt_name) + before
            return self._infill().prompt(before, query.suffix) if query.suffix else before
        if query.tools and (self.template is None or self.template.form is None):
            takes = self.template is not None and self.template.takes_tools
            fact = "writes calls in an unsupported format" if takes else "has no chat template that takes tools"
            raise RequestError("tools", f"{self.expert} {fact}", "leave them out, or name an expert that has one")
        if self.template is not None:
            render = self.template.render_continued if query.continues else self.template.render
            return render(prompt.messages, tools=query.tools, switches=query.switches)
        if len(prompt.messages) > 1:
            fact = f"{self.expert} has no chat template but there are {len(prompt.messages)} messages"
            raise RequestError("messages", fact, "send one message, or give the checkpoint a template")
        return prompt.text


@lru_cache(maxsize=1)
def _tokens_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Cached: several choices of one prompt follow each other."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


@lru_cache(maxsize=1)
def _pair_of(
    tokenizer: Tokenizer, first: str, second: str, max_tokens: int, pad_id: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cached: tokens and type ids are requested one after the other."""
    ids, types = tokenizer.encode_pair(first, second, max_tokens)
    while len(ids) > 1 and ids[-1] == pad_id:  # transformers masks them as padding
        ids, types = ids[:-1], types[:-1]
    return tuple(ids), tuple(types)


def open_texts(models: Mapping[str, Model]) -> dict[str, Text]:
    """Read every expert's tokenizer and template. Raises CheckpointError if one is missing or damaged."""
    return {name: _open(name, model) for name, model in models.items()}


def tokenizer_of(model: Model) -> Tokenizer:
    """The tokenizer of an expert that has bytes: an adapter's own, or else its base's. Raises CheckpointError."""
    folders = [at.path for at in (model, model.base) if at is not None and at.path is not None]
    return Tokenizer.from_folder(next((at for at in folders if has_tokenizer(at)), folders[-1]))


def all_read(texts: Mapping[str, Text], model: str) -> bool:
    """Whether a query to this model, or to any that a router may choose, needs no vocabulary read from disk."""
    asked = texts.get(model)
    return none_evicted() or all(text.is_read for text in (tuple(texts.values()) if asked is None else (asked,)))


def speaker(texts: Mapping[str, Text], composition: Composition, model: str) -> Text:
    """The expert whose tokens are meant: the named one; for a composition's name, any, if all have the same tokenizer.

    Raises NotFoundError for an unknown name, RequestError if tokenizers differ.
    """
    if model != composition.name:
        return texts[composition.expert(model).name]
    found = list(texts.values())
    if any(text.tokenizer is not found[0].tokenizer or text.vocab_size != found[0].vocab_size for text in found):
        fact = f"the experts of {composition.name} have different tokenizers"
        raise RequestError("model", fact, "name the expert whose tokens are meant")
    return found[0]


def _open(name: str, model: Model) -> Text:
    if model.path is None:
        return Text(name, model.config.vocab_size, None, None)
    own, files = model.path, files_of(model)
    base = own if model.base is None or model.base.path is None else model.base.path
    tokens = own if (own / TOKENIZER_CONFIG).exists() else base
    template = ChatTemplate.from_folder(own, tokens) or ChatTemplate.from_folder(base, tokens)
    if model.head is not None:
        max_tokens, config, rows = model.max_prompt_tokens, model.checkpoint.config, model.config.encoder
        how = read_scoring(own, config, model.head.pooling, model.head.read(), max_tokens, model.head.of_tokens)
        scoring = replace(how[1], uses_token_types=how[1].uses_token_types and rows is not None and rows.type_rows > 1)
        samples_tokens, tokenizer = model.samples_tokens, tokenizer_of(model)
        return Text(name, model.config.vocab_size, tokenizer, None, files, how[0], samples_tokens, scoring)
    embedding = read_embedding(own if is_sentence_model(own) else base, DEFAULT_EMBEDDING)
    return Text(name, model.config.vocab_size, tokenizer_of(model), template, files, embedding, model.samples_tokens)


def files_of(model: Model) -> dict[Path, FileIdentity]:
    """The files beside a model's weights and its base's, as they are now, and those of a scoring head."""
    found: dict[Path, FileIdentity] = {}
    paths = {Path(info.shard.path) for info in model.head.tensors} if model.head else set()
    for folder in (at.path for at in (model, model.base) if at is not None and at.path is not None):
        with contextlib.suppress(FileNotFoundError):  # the folder may just have been removed
            paths.update([path for kind in _SIDE_FILES for path in folder.glob(kind)])
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # and so may a file
            found[path] = FileIdentity.of(path.stat())
    return found

"""Text to tokens and back, per expert: tokenizer and chat template, read when the composition is opened.

Knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.api.types import Query
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.tokenizer import Detokenizer, Tokenizer
from coterie.composition.router import Prompt
from coterie.core.errors import RequestError
from coterie.models.model import Model


@dataclass(frozen=True, slots=True)
class Text:
    """How one expert reads and writes. An expert without bytes has no tokenizer: its prompts are counted in bytes."""

    expert: str
    vocab_size: int
    tokenizer: Tokenizer | None
    template: ChatTemplate | None

    def encode(self, query: Query, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's tokens. Raises RequestError when there are none, or when messages need a template."""
        text = self._render(query, prompt)
        if self.tokenizer is None:
            ids = tuple(byte % self.vocab_size for byte in text.encode())
        else:
            ids = tuple(self.tokenizer.encode(text, add_special_tokens=query.raw or self.template is None))
        if not ids:
            raise RequestError("prompt", "has no tokens", "write a question")
        return ids

    def detokenizer(self) -> Detokenizer | None:
        """A new one for one answer."""
        return None if self.tokenizer is None else self.tokenizer.detokenizer()

    def _render(self, query: Query, prompt: Prompt) -> str:
        if query.raw:
            return prompt.messages[-1]["content"]
        if self.template is not None:
            return self.template.render(prompt.messages)
        if len(prompt.messages) > 1:
            fact = f"{self.expert} has no chat template but there are {len(prompt.messages)} messages"
            raise RequestError("messages", fact, "send one message, or give the checkpoint a template")
        return prompt.text


def open_texts(models: Mapping[str, Model]) -> dict[str, Text]:
    """Read every expert's tokenizer and template. Raises CheckpointError where one is missing or damaged."""
    return {name: _open(name, model) for name, model in models.items()}


def _open(name: str, model: Model) -> Text:
    if model.path is None:
        return Text(name, model.config.vocab_size, None, None)
    tokenizer, template = Tokenizer.from_folder(model.path), ChatTemplate.from_folder(model.path)
    return Text(name, model.config.vocab_size, tokenizer, template)


def prompt_of(query: Query) -> Prompt:
    """A query's messages as routers read them. Raises RequestError where there is no question, or no valid text."""
    if not query.messages:
        raise RequestError("messages", "there is no message", "give at least one")
    if not any(m.role == "user" for m in query.messages):
        raise RequestError("messages", "has no user message", "add one: the router reads the last user message")
    prompt = Prompt.from_messages([m.to_dict() for m in query.messages])
    check_unicode(prompt)
    if not query.raw and not prompt.text.strip():
        raise RequestError("prompt", "the last user message has no text", "write a question")
    return prompt


def check_unicode(prompt: Prompt) -> None:
    """Refuse text that is not valid Unicode (half a surrogate pair). Raises RequestError with the place."""
    for message in prompt.messages:
        try:
            message["content"].encode("utf-8")
        except UnicodeEncodeError as error:
            fact = f"character {error.start} is U+{ord(error.object[error.start]):04X}, which is no character by itself"
            raise RequestError("prompt", fact, "send valid Unicode text") from error

"""Thoughts: what a model says to itself before it answers, told from the answer while text comes.

    pieces      "<think>\\nFour" " or five?\\n</th" "ink>\\n\\n" "Four."
    reasoning   "Four"          " or five?"
    text                                                    "Four."

A thought stands at the beginning, between marks that the checkpoint's chat template names too; a template may have
written the opening mark itself, as the prompt's end. Blanks around a thought belong to nothing.
Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from coterie.checkpoint.tokenizer import Detokenizer, Tokenizer
from coterie.core.text import overlap

_MAX_BLANKS = 1024  # that are held back, since a thought may begin or end behind them


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands before a thought, and behind it."""

    opening: str
    closing: str

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends with the beginning of a thought."""
        return prompt.rstrip().endswith(self.opening)


MARKS = (
    Marks("<think>", "</think>"),  # DeepSeek R1 and its distillates, Qwen3, GLM-4.5, SmolLM3, EXAONE 4, MiniMax-M2
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
)


def marks_of(template: str) -> Marks | None:
    """The marks that a chat template knows, or None. Older ones name the closing mark alone, to cut thoughts off."""
    return next((marks for marks in MARKS if marks.closing in template), None)


class _At(Enum):
    BEGINNING = "nothing was said yet"
    THOUGHT = "in a thought"
    BETWEEN = "behind a thought"
    ANSWER = "in the answer"


class ThoughtText(Detokenizer):
    """Gives out the answer as text, and a thought before it as reasoning. `inside`: the prompt opened it."""

    def __init__(
        self, tokenizer: Tokenizer, marks: Marks, inside: bool, kept: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        super().__init__(tokenizer, kept)
        self._marks, self._at = marks, _At.THOUGHT if inside else _At.BEGINNING
        self._held, self._reasoning = "", ""
        self._thought = False  # there was some

    def push(self, token_id: int) -> str:
        """Add a token and return the answer's text that is certain now."""
        began_in_thought = self._at is _At.THOUGHT
        text = self._told(super().push(token_id))
        self.reasoning_tokens += began_in_thought or self._at is _At.THOUGHT
        return text

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        text = self._told(super().flush())
        held, self._held = self._held, ""
        if self._at is _At.THOUGHT:
            self._think(held.rstrip())
            return text
        return text + held if self._at is _At.BEGINNING else text

    def take_reasoning(self) -> str:
        """What was thought since the last time."""
        taken, self._reasoning = self._reasoning, ""
        return taken

    def _told(self, piece: str) -> str:
        if self._at is _At.ANSWER:
            return piece
        self._held += piece
        if self._at is _At.BEGINNING:
            self._begin()
        if self._at is _At.THOUGHT:
            self._go_on()
        if self._at is _At.BETWEEN:
            self._held = self._held.lstrip()
            self._at = _At.ANSWER if self._held else _At.BETWEEN
        if self._at is not _At.ANSWER:
            return ""
        text, self._held = self._held, ""
        return text

    def _begin(self) -> None:
        """Decide whether there is a thought, once that is known."""
        opening, begun = self._marks.opening, self._held.lstrip()
        if begun.startswith(opening):
            self._at, self._held = _At.THOUGHT, begun[len(opening) :]
        elif not opening.startswith(begun) or len(self._held) > _MAX_BLANKS:
            self._at = _At.ANSWER

    def _go_on(self) -> None:
        """Give out what is thought for certain."""
        closing = self._marks.closing
        end = self._held.find(closing)
        if end >= 0:
            self._think(self._held[:end].rstrip())
            self._at, self._held = _At.BETWEEN, self._held[end + len(closing) :]
            return
        certain = self._held[: len(self._held) - overlap(self._held, closing)]
        certain = certain.rstrip() or (certain if len(certain) > _MAX_BLANKS else "")
        self._held = self._held[len(certain) :]
        self._think(certain)

    def _think(self, text: str) -> None:
        self._reasoning += text if self._thought else text.lstrip()
        self._thought = self._thought or bool(text.strip())

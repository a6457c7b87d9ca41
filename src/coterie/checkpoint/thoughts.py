"""Separates a model's reasoning (its thought) from the answer that follows, in streamed text.

    pieces      "<think>\\nFour" " or five?\\n</th" "ink>\\n\\n" "Four."
    reasoning   "Four"          " or five?"
    text                                                    "Four."

A thought comes first, between marks that also occur in the checkpoint's chat template; the template may have written
the opening mark itself, at the end of the prompt. White space around a thought is dropped.
Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from coterie.checkpoint.nesting import MAX_BLANKS
from coterie.checkpoint.tokenizer import Detokenizer, Tokenizer
from coterie.core.text import overlap


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks around a thought. `title`: a first line of it to drop. `answer`: marks around the answer."""

    opening: str
    closing: str
    title: str = ""
    answer: tuple[str, str] | None = None

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends with the opening mark."""
        return prompt.rstrip().endswith(self.opening)

    def left_open_by(self, said: str) -> bool:
        """Whether the text that the answer continues ends within a thought."""
        return said.rfind(self.opening) > said.rfind(self.closing)


MARKS = (
    Marks("<think>", "</think>"),  # DeepSeek R1 and its distillates, Qwen3, GLM-4.5, SmolLM3, EXAONE 4, MiniMax-M2
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    Marks("<|channel>", "<channel|>", "thought"),  # Gemma 4
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)
_ANSWERS = (("<response>", "</response>"), ("<answer>", "</answer>"))  # Granite 3.3; Hunyuan


def marks_of(template: str) -> Marks | None:
    """The marks in a chat template, or None. Older templates contain only the closing one, to cut thoughts off."""
    marks = next((marks for marks in MARKS if marks.closing in template), None)
    around = next((answer for answer in _ANSWERS if all(mark in template for mark in answer)), None)
    return replace(marks, answer=around) if marks else None


class _At(Enum):
    BEGINNING = "nothing was said yet"
    THOUGHT = "in a thought"
    BETWEEN = "behind a thought"
    ANSWER = "in the answer"


class ThoughtText(Detokenizer):
    """Returns the answer as text, and a thought before it as reasoning. `inside`: the prompt opened a thought."""

    def __init__(
        self, tokenizer: Tokenizer, marks: Marks, inside: bool, kept: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        super().__init__(tokenizer, kept)
        self._marks, self._at = marks, _At.THOUGHT if inside else _At.BEGINNING
        self._held, self._reasoning = "", ""
        self._thought = False  # whether there was any reasoning
        self._title, self._lead = marks.title and marks.title + "\n", ""  # the title, and how much of it has come
        self._closing = ""  # the mark that ends the answer, if one began it

    def push(self, token_id: int) -> str:
        """Add a token and return the answer's text that is certain now."""
        began_in_thought = self._at is _At.THOUGHT
        text = self._route(super().push(token_id))
        self.reasoning_tokens += began_in_thought or self._at is _At.THOUGHT
        return text

    def flush(self) -> str:
        """The rest, when the answer has ended."""
        text = self._route(super().flush())
        held, self._held = self._held, ""
        if self._at is _At.THOUGHT:
            self._think(held.rstrip())
            return text
        return text + held

    def take_reasoning(self) -> str:
        """The reasoning since the last call."""
        taken, self._reasoning = self._reasoning, ""
        return taken

    def _route(self, piece: str) -> str:
        if self._at is _At.ANSWER:
            return self._unclosed(piece)
        self._held += piece
        if self._at is _At.BEGINNING:
            self._begin()
        if self._at is _At.THOUGHT:
            self._go_on()
        if self._at is _At.BETWEEN:
            self._held = self._held.lstrip()
            self._at = self._unwrapped()
        if self._at is not _At.ANSWER:
            return ""
        text, self._held = self._held, ""
        return self._unclosed(text)

    def _unwrapped(self) -> _At:
        """After a thought: drop the answer's opening mark, if any, and tell whether the answer has begun."""
        opening, closing = self._marks.answer or ("", "")
        if opening and not self._closing:
            if opening.startswith(self._held):
                return _At.BETWEEN
            if self._held.startswith(opening):
                self._closing, self._held = closing, self._held[len(opening) :].lstrip()
        return _At.ANSWER if self._held else _At.BETWEEN

    def _unclosed(self, piece: str) -> str:
        """The next text of the answer, without the mark that ends it, if any."""
        if not self._closing:
            return piece
        text, self._held = self._held + piece, ""
        before, mark, behind = text.partition(self._closing)
        if mark:
            self._closing = ""
            return before.rstrip() + behind
        kept = overlap(text, self._closing)
        blanks = len(text[: len(text) - kept]) - len(text[: len(text) - kept].rstrip())
        certain = len(text) - kept - (blanks if blanks <= MAX_BLANKS else 0)
        self._held = text[certain:]
        return text[:certain]

    def _begin(self) -> None:
        """Decide whether the answer begins with a thought, as soon as that is clear."""
        opening, begun = self._marks.opening, self._held.lstrip()
        if begun.startswith(opening):
            self._at, self._held = _At.THOUGHT, begun[len(opening) :]
        elif not opening.startswith(begun) or len(self._held) > MAX_BLANKS:
            self._at = _At.ANSWER

    def _go_on(self) -> None:
        """Move what is certainly reasoning out of the held text."""
        closing = self._marks.closing
        end = self._held.find(closing)
        if end >= 0:
            self._think(self._held[:end].rstrip())
            self._at, self._held = _At.BETWEEN, self._held[end + len(closing) :]
            return
        certain = self._held[: len(self._held) - overlap(self._held, closing)]
        certain = certain.rstrip() or (certain if len(certain) > MAX_BLANKS else "")
        self._held = self._held[len(certain) :]
        self._think(certain)

    def _think(self, text: str) -> None:
        if not self._thought:
            text = self._untitled(text.lstrip() if not self._lead else text)
        self._reasoning += text
        self._thought = self._thought or bool(text)

    def _untitled(self, text: str) -> str:
        """The beginning of a thought, without its title; empty while it may still be the title."""
        begun, self._lead = self._lead + text, ""
        if not self._title:
            return begun
        if self._title.startswith(begun):
            self._lead = begun
            return ""
        if begun.startswith(self._title):
            self._title, begun = "", begun[len(self._title) :].lstrip()
        return begun

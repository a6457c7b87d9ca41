"""Code to be filled in: a prompt of what stands before and behind it, between marks that a tokenizer has.

    <|fim_prefix|>def add(a, b):\\n    <|fim_suffix|>\\n\\nprint(add(1, 2))<|fim_middle|>        return a + b

Sources: the model cards of Qwen2.5-Coder, StarCoder2 and DeepSeek-Coder. Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TokenId = Callable[[str], "int | None"]


@dataclass(frozen=True, slots=True)
class InfillMarks:
    """What stands before the beginning, the end and the middle, each a token; `others` end a middle too."""

    prefix: str
    suffix: str
    middle: str
    others: tuple[str, ...] = ()

    def prompt(self, before: str, behind: str) -> str:
        """The prompt whose answer is what lies between."""
        return f"{self.prefix}{before}{self.suffix}{behind}{self.middle}"

    def ends(self, token_id: TokenId) -> tuple[int, ...]:
        """The tokens that end what is filled in, beside the expert's own: a mark is no code."""
        found = [token_id(mark) for mark in (self.prefix, self.suffix, self.middle, *self.others)]
        return tuple([token for token in found if token is not None])


FAMILIES = (
    # Qwen2.5-Coder, CodeGemma; a model that has filled in goes on with padding, or with another file.
    InfillMarks(
        *("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        others=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    # StarCoder 1 and 2, Granite's code models.
    InfillMarks("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<repo_name>", "<file_sep>")),
    # DeepSeek-Coder 1 and 2.
    InfillMarks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def infill_marks(token_id: TokenId) -> InfillMarks | None:
    """Those that a tokenizer has; None: its model was not made to fill in."""
    for marks in FAMILIES:
        if all(token_id(mark) is not None for mark in (marks.prefix, marks.suffix, marks.middle)):
            return marks
    return None

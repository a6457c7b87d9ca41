"""Fill-in-the-middle prompts: the code before and after a gap, with marks that the tokenizer has as tokens.

    <|fim_prefix|>def add(a, b):\\n    <|fim_suffix|>\\n\\nprint(add(1, 2))<|fim_middle|>        return a + b

Sources: the model cards of Qwen2.5-Coder, StarCoder2 and DeepSeek-Coder.
Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TokenId = Callable[[str], "int | None"]


@dataclass(frozen=True, slots=True)
class InfillMarks:
    """The tokens before the prefix, the suffix and the middle; `end_marks` are further tokens that end a middle."""

    prefix: str
    suffix: str
    middle: str
    end_marks: tuple[str, ...] = ()

    def prompt(self, before: str, after: str) -> str:
        """The prompt whose answer is the text between `before` and `after`."""
        return f"{self.prefix}{before}{self.suffix}{after}{self.middle}"

    def ends(self, token_id: TokenId) -> tuple[int, ...]:
        """The tokens that end a middle, in addition to the expert's own end tokens."""
        found = [token_id(mark) for mark in (self.prefix, self.suffix, self.middle, *self.end_marks)]
        return tuple([token for token in found if token is not None])


FAMILIES = (
    # Qwen2.5-Coder, CodeGemma; after the middle they continue with padding or another file.
    InfillMarks(
        *("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        end_marks=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    # StarCoder 1 and 2, Granite's code models.
    InfillMarks("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<repo_name>", "<file_sep>")),
    # DeepSeek-Coder 1 and 2.
    InfillMarks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def infill_marks(token_id: TokenId) -> InfillMarks | None:
    """The marks that a tokenizer has; None if its model was not trained to fill in the middle."""
    for marks in FAMILIES:
        if all(token_id(mark) is not None for mark in (marks.prefix, marks.suffix, marks.middle)):
            return marks
    return None

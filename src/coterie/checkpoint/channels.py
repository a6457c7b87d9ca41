"""Answers in channels, as gpt-oss writes them: of all that a model says, the text that is meant for its reader.

    <|channel|>analysis<|message|>It wants ...<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|return|>
                                                                                                  ^^^^^^ given out

Knows nothing about templates or requests. Source: OpenAI's description of the harmony response format.
"""

from __future__ import annotations

from coterie.checkpoint.tokenizer import Detokenizer, Tokenizer

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
MARKERS = (START, CHANNEL, MESSAGE)
FINAL = "final"


class FinalText(Detokenizer):
    """Gives out what is said in the final channel, or in none; the names of channels and roles are no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        named = {tokenizer.token_id(marker): marker for marker in MARKERS}
        self._markers = {token_id: marker for token_id, marker in named.items() if token_id is not None}
        self._shown = True
        self._header: list[int] | None = None  # the name of a channel, while it is written

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is certain now."""
        marker = self._markers.get(token_id)
        if marker is None:
            if self._header is not None:
                self._header.append(token_id)
            return super().push(token_id) if self._shown else ""
        rest = super().flush() if self._shown else ""
        if marker == MESSAGE:
            self._shown = self._header is None or self._tokenizer.decode(self._header).split()[:1] == [FINAL]
            self._header = None
        else:
            self._header = [] if marker == CHANNEL else None
            self._shown = False
        return rest

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        return super().flush() if self._shown else ""

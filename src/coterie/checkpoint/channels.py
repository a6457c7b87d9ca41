"""Answers in channels, as gpt-oss writes them: text for the user, reasoning, and tool calls.

    <|channel|>analysis<|message|>It wants ...<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|return|>
                                  ^^^^^^^^^^^^ reasoning                                           ^^^^^^ text
    <|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 2}<|call|>

A call is passed on as text in the form that calls.py reads.
Knows nothing about templates or requests.
Source: OpenAI's description of the harmony response format.
"""

from __future__ import annotations

import json
import re

from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.tokenizer import Detokenizer, Tokenizer

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, CONSTRAIN = "<|end|>", "<|constrain|>"
MARKERS = (START, CHANNEL, MESSAGE)
ROLE = "assistant"
THOUGHT, SAID = "analysis", ("final", "commentary")  # commentary: text before a call
CALL_FORM = FORMS["hermes"]
TO = "to=functions."
_TO = re.compile(rf"\b{re.escape(TO)}(\S+)")


class ChannelText(Detokenizer):
    """Passes on text for the user: in the final channel, in no channel, and in the commentary before a call.

    Headers (channels and roles) are dropped. `calls`: pass on function calls too, in `CALL_FORM`.
    """

    def __init__(self, tokenizer: Tokenizer, calls: bool = False) -> None:
        super().__init__(tokenizer)
        named = {tokenizer.token_id(marker): marker for marker in MARKERS}
        self._markers = {token_id: marker for token_id, marker in named.items() if token_id is not None}
        self._calls = calls
        self._header: list[list[int]] | None = None  # tokens of a role and a channel, while a header is open
        self._shown, self._thinks = True, False
        self._arguments: str | None = None  # of the call in progress
        self._said, self._thought = False, False  # whether there was any text, any reasoning
        self._reasoning = ""

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is certain now."""
        marker = self._markers.get(token_id)
        self.reasoning_tokens += self._thinks and self._header is None
        if marker is None:
            if self._header is None:
                return self._route(super().push(token_id))
            self._header[-1].append(token_id)
            return ""
        rest = "" if self._header is not None else self._route(self._rest()) + self._closed()
        if marker == MESSAGE:
            return rest + self._begin([] if self._header is None else self._header)
        self._header = [*(self._header or []), []]
        return rest

    def flush(self) -> str:
        """The rest, when the answer has ended."""
        return "" if self._header is not None else self._route(super().flush()) + self._closed()

    def take_reasoning(self) -> str:
        """The reasoning since the last call."""
        taken, self._reasoning = self._reasoning, ""
        return taken

    def _begin(self, header: list[list[int]]) -> str:
        """Begin a message, whose channel and recipient are in its header."""
        self._header = None
        words = " ".join([self._tokenizer.decode(part) for part in header])
        to, channel = _TO.search(words), _TO.sub("", words).removeprefix(ROLE).split()[:1]
        self._thinks = channel == [THOUGHT] and to is None
        self._shown = not channel or channel[0] in SAID if to is None else self._calls
        if self._thinks:
            self._reasoning += "\n" if self._thought else ""
        if to is None or not self._calls:
            return "\n" if self._shown and self._said else ""
        self._arguments = ""
        return f'{CALL_FORM.opening}{{"name": {json.dumps(to[1])}, "{CALL_FORM.arguments}": '

    def _closed(self) -> str:
        """The closing text of the call in progress, if its arguments are complete."""
        written, self._arguments = self._arguments, None
        if written is None:
            return ""
        try:
            json.loads(written)
        except (ValueError, RecursionError):
            return ""
        return "}" + CALL_FORM.closing

    def _route(self, piece: str) -> str:
        """Route a piece of a message to reasoning, arguments or text; return what is shown."""
        if self._thinks:
            self._reasoning += piece
            self._thought = self._thought or bool(piece)
        if not self._shown:
            return ""
        self._said = self._said or bool(piece)
        if self._arguments is not None:
            self._arguments += piece
        return piece

"""What goes into the Python API and what comes out: Query, Chunk, Answer.

Knows nothing about engines or devices.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.api.logprobs import TokenLogprob
from coterie.checkpoint.calls import Calling
from coterie.checkpoint.constraint import Constraint
from coterie.composition.evaluate import last_line
from coterie.composition.router import Prompt, Route
from coterie.core.errors import CoterieError, RequestError, check_unicode
from coterie.core.sampling import UNSET, PartialSampling
from coterie.engine.request import ChoiceParams, SamplingParams

SEED_BITS = 53  # exact in JSON readers that store numbers as doubles


def draw_seed() -> int:
    """A seed for a request without one; the answer reports it."""
    return secrets.randbits(SEED_BITS)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call by an assistant: the tool's name and its arguments, a JSON object."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """In the form that chat templates read."""
        return {"id": self.call_id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool.

    An assistant's message may have `calls`, and the `reasoning` before its content; a tool's is the result of the call
    `call_id`, and may have the tool's `name`.
    """

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    reasoning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """In the form that chat templates and routers read."""
        required = {"role": self.role, "content": self.content}
        more = {"tool_calls": [call.to_dict() for call in self.calls], "tool_call_id": self.call_id, "name": self.name}
        more |= {"reasoning_content": self.reasoning, "thinking": self.reasoning}  # templates use either name
        return {**required, **{key: value for key, value in more.items() if value}}


@dataclass(frozen=True, slots=True)
class Query:
    """A conversation to be answered.

    model: an expert's name bypasses the router; empty or the composition's name lets it choose.
    sampling: a SamplingParams is complete, together with the penalties of `choice`. What a PartialSampling leaves open
        is taken from the expert's defaults (its checkpoint or composition file), except penalties set in `choice`.
    max_tokens: 0 generates nothing, if `choice` asks to score the prompt.
    raw: skip the chat template: the last message is the text itself, and `prompt_ids`, if given, are its tokens.
    previous_expert: the expert that answered this conversation before.
    client: the requester; while several wait, each has a share of the queue. "" is exempt.
    tools: offered to the expert, as chat templates read them: {"type": "function", "function": {"name", ...}}.
    form: a constraint on the answer: a JSON schema, as JSON, or a Constraint (a regular expression, a choice of texts,
        a grammar), which excludes tools; empty: none.
    calling: requirements on tool calls; with them, or a strict tool, the calls' format and arguments are constrained.
    switches: values of chat-template variables, as {"enable_thinking": False}.
    prediction: a text that the answer is expected to repeat, with changes; used for speculative decoding.
    suffix: for fill-in-the-middle on a raw text, what follows the gap; empty: plain continuation.
    embeds: return a vector of the text instead of an answer. `prompt_name`: the prompt to put before it, as the
        expert names them ("query", "document"); empty: its default.
    ranks: with `embeds`: the two messages are a question and a document; the vector is what their score is made from.
    priority: lower goes first; ties in order of arrival.
    continues: the last message is the assistant's, and the answer continues it.
    fallback_sampling: used in place of an expert's defaults if it has none; settings left open are greedy.
    """

    messages: tuple[Message, ...]
    model: str = ""
    sampling: SamplingParams | PartialSampling = field(default_factory=PartialSampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] | str = ()
    raw: bool = False
    previous_expert: str = ""
    ignore_end: bool = False
    client: str = ""
    prompt_ids: tuple[int, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    choice: ChoiceParams = field(default_factory=ChoiceParams)
    form: str | Constraint = ""
    calling: Calling = field(default_factory=Calling)
    switches: Mapping[str, Any] = field(default_factory=dict)
    prediction: str = ""
    suffix: str = ""
    embeds: bool = False
    prompt_name: str = ""
    ranks: bool = False
    priority: int = 0
    continues: bool = False
    fallback_sampling: PartialSampling = UNSET

    @classmethod
    def text(cls, prompt: str, model: str = "") -> Query:
        """A single user message with default settings."""
        return cls((Message("user", prompt),), model)


def prompt_of(query: Query) -> Prompt:
    """A query's messages as routers read them. Raises RequestError if there is no question, or invalid text."""
    if not query.messages:
        raise RequestError("messages", "there is no message", "give at least one")
    if not any(m.role == "user" for m in query.messages):
        raise RequestError("messages", "has no user message", "add one: the router reads the last user message")
    prompt = Prompt.from_messages([m.to_dict() for m in query.messages])
    for message in prompt.messages:
        check_unicode(message["content"], "prompt")
    if not query.raw and not prompt.text.strip():
        raise RequestError("prompt", "the last user message has no text", "write a question")
    return prompt


# Fields of an answer's JSON, in addition to text and route.
_COUNTED = (
    *("finish_reason", "seed", "prompt_tokens", "cached_tokens", "reasoning_tokens", "guessed_tokens"),
    *("accepted_tokens", "hit", "switch_s", "routed_s", "ttft_s", "total_s", "tokens_per_s", "synthetic"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. Times are seconds on the device's clock.

    hit: the expert was resident when the request reached the engine; switch_s: else how long loading it took; 0 on a
        hit.
    ttft_s: from submission to the first token. Of this, `routed_s` was spent on a model asked for the route (0: none),
        and then `queued_s` in the queue.
    tokens_per_s: rate after the first token, 0 for a single token.
    synthetic: the tokens are made up by a modelled device that computes no numbers.
    cached_tokens: prompt tokens found in the prefix cache, from an earlier turn, say.
    guessed_tokens: drafted by speculative decoding; accepted_tokens: how many of them were accepted.
    logprobs: if requested, one for each token of the text, without an end token.
    prompt_logprobs: if the prompt was scored, one for each of its tokens, the first being NaN; `logprobs` then includes
        an end token.
    reasoning: the reasoning before the text, of `reasoning_tokens` tokens; `token_ids` includes it.
    predicted_tokens: tokens of the query's prediction that the answer repeated; unpredicted_tokens: the others, if it
        was used.
    vector: for a query that `embeds`, the pooled output of the expert's last norm.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    expert: str
    route: Route
    finish_reason: str
    seed: int
    prompt_tokens: int
    hit: bool
    switch_s: float
    ttft_s: float
    total_s: float
    tokens_per_s: float
    synthetic: bool
    routed_s: float = 0.0
    cached_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    reasoning_tokens: int = 0
    predicted_tokens: int = 0
    unpredicted_tokens: int = 0
    vector: tuple[float, ...] = ()
    queued_s: float = 0.0

    @property
    def last_line(self) -> str:
        """The last non-blank line, where experts that show their working put the answer."""
        return last_line(self.text)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        output = {
            "text": self.text,
            "reasoning": self.reasoning,
            "token_ids": list(self.token_ids),
            "expert": self.expert,
        }
        route = self.route.to_dict()
        why = {name: route[name] for name in ("confidence", "is_fallback", "reason")}
        return {**output, **why, **{name: getattr(self, name) for name in _COUNTED}}


@dataclass(frozen=True, slots=True)
class Chunk:
    """New output of one request; the last chunk has either the complete `answer` or an `error`."""

    request_id: str
    expert: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    answer: Answer | None = None
    error: CoterieError | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""

    @property
    def last(self) -> bool:
        """True if no more chunks follow."""
        return self.answer is not None or self.error is not None

"""What goes into the Python face and what comes out: Query, Chunk, Answer.

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
from coterie.core.sampling import NOTHING_SAID, PartialSampling
from coterie.engine.request import ChoiceParams, SamplingParams

SEED_BITS = 53  # every such number survives JSON readers that have only doubles


def draw_seed() -> int:
    """A seed for a request whose caller gave none; the answer reports it."""
    return secrets.randbits(SEED_BITS)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant made: the tool's name and its arguments, a JSON object."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As chat templates read it."""
        return {"id": self.call_id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool.

    An assistant's may have `calls`, and `reasoning` before it spoke; a tool's says what came of one, by its `call_id`,
    and may have the tool's `name`.
    """

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    reasoning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As chat templates and routers read it."""
        said = {"role": self.role, "content": self.content}
        more = {"tool_calls": [call.to_dict() for call in self.calls], "tool_call_id": self.call_id, "name": self.name}
        more |= {"reasoning_content": self.reasoning, "thinking": self.reasoning}  # templates have either name
        return {**said, **{key: value for key, value in more.items() if value}}


@dataclass(frozen=True, slots=True)
class Query:
    """A conversation that wants an answer.

    `model` empty or the composition's name lets the router choose; an expert's name bypasses it. `raw` skips the chat
    template: the last message is the text itself, and `prompt_ids`, where given, are its tokens. `previous_expert` is
    who answered this conversation before.
    `form`: what the answer is held to, a JSON schema, as JSON, or a Constraint (a regular expression, a choice of
    texts, a grammar), which takes no tools beside it; empty: nothing.
    `tools` are offered to the expert, as chat templates read them: {"type": "function", "function": {"name", ...}}.
    `calling`: what is asked of the answer's calls; with it, or a strict tool, their form and arguments are held.
    `prediction`: a text that the answer is expected to repeat, with changes: it is used to draft the answer's tokens.
    `suffix`: of a raw text, what stands behind the place that is to be filled in; empty: the text goes on.
    `sampling`: a SamplingParams is all of it, penalties of `choice` too; what a PartialSampling does not say is as the
    expert's defaults have it (those of its checkpoint or its composition file), but for penalties that `choice` has.
    `otherwise`: what holds of it in the place of an expert's defaults where there are none; without it greedy.
    `continues`: the last message is the assistant's, and the beginning of the answer, which goes on with it.
    `switches`: values for variables of the expert's chat template, as {"enable_thinking": False}.
    `embeds`: no answer is wanted, but the vector of the text; `use` is the name of the prompt before it, as its expert
    has them ("query", "document"); empty: the usual one. `ranks` too: of two messages, a question and a document, the
    vector that their expert makes a score of is wanted.
    `max_tokens` 0 draws nothing where `choice` asks to score the prompt.
    `client` is who asks: while several do, each has a share of the queue; "" has none and is never held back.
    `priority`: the lower, the sooner; of equal ones the first comes first.
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
    use: str = ""
    ranks: bool = False
    priority: int = 0
    continues: bool = False
    otherwise: PartialSampling = NOTHING_SAID

    @classmethod
    def text(cls, prompt: str, model: str = "") -> Query:
        """A single user message with default settings."""
        return cls((Message("user", prompt),), model)


def prompt_of(query: Query) -> Prompt:
    """A query's messages as routers read them. Raises RequestError where there is no question, or no valid text."""
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


# Of an answer, what its JSON has beside text and route.
_COUNTED = (
    *("finish_reason", "seed", "prompt_tokens", "cached_tokens", "reasoning_tokens", "guessed_tokens"),
    *("accepted_tokens", "hit", "switch_s", "routed_s", "ttft_s", "total_s", "tokens_per_s", "synthetic"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. Times are seconds on the device's clock.

    `hit`: the expert was resident when the answer was scheduled; `switch_s`: how long it took to become so, else 0.
    `ttft_s`: from submission to the first token; `routed_s` of it a model was asked for the route (0: none was), and
    `queued_s` behind that it waited for its turn.
    `tokens_per_s`: rate after the first token, 0 for a single token.
    `cached_tokens`: of the prompt, those that were not computed: their KV state was there, of an earlier turn, say.
    `guessed_tokens`: drafted by speculative decoding; `accepted_tokens`: those of them that were right.
    `predicted_tokens`: of the query's prediction, those that came; `unpredicted_tokens`: the others, where it was used.
    `synthetic`: the tokens are made up by a modelled device that computes no numbers.
    `logprobs`: where `choice` asked for them, one for each token of the text, an end token left out.
    `prompt_logprobs`: where it asked to score the prompt, one for each of its tokens, that of the first not a number;
    then `logprobs` has an end token's too.
    `reasoning`: what was thought before the text, of `reasoning_tokens` tokens; `token_ids` has all.
    `vector`: of a query that `embeds`, as the expert's last norm made it.
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
        """The last line that is not blank: where experts that show their working put the answer."""
        return last_line(self.text)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        said = {
            "text": self.text,
            "reasoning": self.reasoning,
            "token_ids": list(self.token_ids),
            "expert": self.expert,
        }
        route = self.route.to_dict()
        why = {name: route[name] for name in ("confidence", "is_fallback", "reason")}
        return {**said, **why, **{name: getattr(self, name) for name in _COUNTED}}


@dataclass(frozen=True, slots=True)
class Chunk:
    """News of one request: what is new of it; the last chunk has either the whole `answer` or an `error`."""

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
        """True when nothing follows."""
        return self.answer is not None or self.error is not None

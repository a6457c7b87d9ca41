"""The requests of one round, drawn from a workload's seed: as HTTP bodies for a server, or as requests to an engine.

Knows nothing about how they are sent or measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coterie.api import Message, Query
from coterie.api.texts import Text
from coterie.api.types import prompt_of
from coterie.bench.words import prompt
from coterie.engine.request import Request
from coterie.plan.workload import Load, Workload, make_workload

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS_SEED = 4  # distinct from the seeds of the workload's own draws


@dataclass(frozen=True, slots=True)
class Way:
    """How a server is asked. `raw`: without chat templates. `fixed`: each answer has exactly `max_tokens` tokens.

    OpenAI's API has no field for the latter; servers of open models call it `ignore_eos`.
    """

    raw: bool = False
    fixed: bool = True

    @property
    def path(self) -> str:
        """The path of requests."""
        return TEXT if self.raw else CHAT

    def body(self, model: str, text: str, max_tokens: int, priority: int = 0) -> bytes:
        """The body of a greedy, streamed request with usage. Priority 0 is left out: not all servers know the field."""
        asked = {"prompt": text} if self.raw else {"messages": [{"role": "user", "content": text}]}
        how: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        more = ({"ignore_eos": True} if self.fixed else {}) | ({"priority": priority} if priority else {})
        return json.dumps({"model": model, **asked, "max_tokens": max_tokens, **how, **more}).encode()

    def query(self, model: str, text: str) -> Query:
        """The same question for the Python API."""
        return Query((Message("user", text),), model, raw=self.raw)


@dataclass(frozen=True, slots=True)
class RoundRequests:
    """The requests of one round: models, texts, numbers of tokens and priorities.

    They are sent at times `at_s` (seconds from the start), or `in_flight` at once.
    """

    models: Sequence[str]
    texts: Sequence[str]
    new_tokens: Sequence[int]
    at_s: Sequence[float]
    in_flight: int
    priorities: Sequence[int]

    def bodies(self, way: Way) -> list[bytes]:
        """The requests as HTTP bodies."""
        return [way.body(*one) for one in self._each()]

    def requests(self, way: Way, texts: Mapping[str, Text]) -> list[Request]:
        """The requests as the engine takes them, tokenized; the ids are their numbers."""
        found = []
        for number, (model, text, new, priority) in enumerate(self._each()):
            ids = encoded(texts[model], way.query(model, text))
            found.append(Request(str(number), model, ids, new, ignore_end=True, priority=priority))
        return found

    def _each(self) -> Iterator[tuple[str, str, int, int]]:
        return zip(self.models, self.texts, self.new_tokens, self.priorities, strict=True)


def draw_round(
    load: Load, names: Sequence[str], number: int, count: Mapping[str, Callable[[str], int]]
) -> RoundRequests:
    """The requests of round `number`. Prompts differ from all earlier ones, so that no prefix cache helps.

    `count`: for some experts, a function that counts the tokens of a text.
    """
    drawn = round_of(load, number, names)
    rng = np.random.default_rng([load.seed + number, WORDS_SEED])
    models = [names[expert] for expert in drawn.expert_index.tolist()]
    lengths = drawn.prompt_tokens.tolist()
    texts = [prompt(rng, tokens, count.get(model)) for model, tokens in zip(models, lengths, strict=True)]
    rest = drawn.new_tokens.tolist(), drawn.at_s.tolist(), drawn.in_flight, drawn.ranks.tolist()
    return RoundRequests(models, texts, *rest)


def own_seeds(loads: Sequence[Load], rounds: int) -> list[Load]:
    """Loads with distinct seeds, so that no round repeats the prompts of another load's.

    The first keeps its seed. `rounds`: per load, without the warm-up round.
    """
    return [replace(load, seed=load.seed + number * (rounds + 1)) for number, load in enumerate(loads)]


def round_of(load: Load, number: int, names: Sequence[str]) -> Workload:
    """The workload of round `number`; each round's is different."""
    return make_workload(replace(load, seed=load.seed + number), names)


def encoded(text: Text, query: Query) -> tuple[int, ...]:
    """The prompt tokens of a query, as the server would encode it. Raises RequestError."""
    return text.encode(query, prompt_of(query))

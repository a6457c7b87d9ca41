"""The requests of one round: drawn from a workload's seed, as bodies for a server and as requests to an engine.

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
WORDS_SEED = 4  # beside those of the workload's own draws


@dataclass(frozen=True, slots=True)
class Way:
    """How a server is asked: `raw` without chat templates; `fixed`: answers have exactly so many tokens.

    There is no word for that in OpenAI's API; servers of open models call it `ignore_eos`.
    """

    raw: bool = False
    fixed: bool = True

    @property
    def path(self) -> str:
        """Where requests are sent."""
        return TEXT if self.raw else CHAT

    def body(self, model: str, text: str, max_tokens: int, priority: int = 0) -> bytes:
        """A request for a stream with its usage at the end, greedy. Priority 0 is not said: not all servers know it."""
        asked = {"prompt": text} if self.raw else {"messages": [{"role": "user", "content": text}]}
        how: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        more = ({"ignore_eos": True} if self.fixed else {}) | ({"priority": priority} if priority else {})
        return json.dumps({"model": model, **asked, "max_tokens": max_tokens, **how, **more}).encode()

    def query(self, model: str, text: str) -> Query:
        """The same question in Python."""
        return Query((Message("user", text),), model, raw=self.raw)


@dataclass(frozen=True, slots=True)
class Asked:
    """One round: who is asked what, for how many tokens, and when (seconds from the start) or how many at once;
    and the priority of each.
    """

    models: Sequence[str]
    texts: Sequence[str]
    new_tokens: Sequence[int]
    at_s: Sequence[float]
    in_flight: int
    priorities: Sequence[int]

    def bodies(self, way: Way) -> list[bytes]:
        """As a server is asked."""
        return [way.body(*one) for one in self._each()]

    def requests(self, way: Way, texts: Mapping[str, Text]) -> list[Request]:
        """As an engine is asked: in tokens. Each has its number as its id."""
        found = []
        for number, (model, text, new, priority) in enumerate(self._each()):
            ids = encoded(texts[model], way.query(model, text))
            found.append(Request(str(number), model, ids, new, ignore_end=True, priority=priority))
        return found

    def _each(self) -> Iterator[tuple[str, str, int, int]]:
        return zip(self.models, self.texts, self.new_tokens, self.priorities, strict=True)


def draw_round(load: Load, names: Sequence[str], number: int, count: Mapping[str, Callable[[str], int]]) -> Asked:
    """The requests of round `number`: no prompt was asked before, so that nothing of it is known.

    `count`: of some experts, how many tokens a text is.
    """
    drawn = round_of(load, number, names)
    rng = np.random.default_rng([load.seed + number, WORDS_SEED])
    models = [names[expert] for expert in drawn.asked.tolist()]
    lengths = drawn.prompt_tokens.tolist()
    texts = [prompt(rng, tokens, count.get(model)) for model, tokens in zip(models, lengths, strict=True)]
    told = drawn.new_tokens.tolist(), drawn.at_s.tolist(), drawn.in_flight, drawn.ranks.tolist()
    return Asked(models, texts, *told)


def own_seeds(loads: Sequence[Load], rounds: int) -> list[Load]:
    """Loads with seeds of their own: else the rounds of one would ask what a server has answered in those of another.

    The first keeps its seed. `rounds`: of each load, besides the one that warms up.
    """
    return [replace(load, seed=load.seed + number * (rounds + 1)) for number, load in enumerate(loads)]


def round_of(load: Load, number: int, names: Sequence[str]) -> Workload:
    """The workload of round `number`, each round's its own."""
    return make_workload(replace(load, seed=load.seed + number), names)


def encoded(text: Text, query: Query) -> tuple[int, ...]:
    """The tokens that the server would make of a query. Raises RequestError."""
    return text.encode(query, prompt_of(query))

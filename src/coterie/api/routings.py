"""Routings: prompts whose router asks a model first. The engine answers these asks like any other request.

    begin(id, pending) -> asks, submitted to the engine -> take(output) ... -> id is decided -> route(id)

Knows nothing about what becomes of a prompt once its route is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coterie.api.embeddings import apply_layers, query_of
from coterie.api.texts import Text
from coterie.api.types import Query, prompt_of
from coterie.api.vector_cache import VectorCache
from coterie.composition.router import Ask, Prompt, Result, Route
from coterie.composition.routing import Pending, Routing
from coterie.core.errors import UnsupportedError
from coterie.engine.engine import Engine
from coterie.engine.request import Output, Request
from coterie.engine.routing import RoutingJob
from coterie.models.model import Model

_ROUNDING = 1e-2  # relative to a vector's length: on a GPU rounding depends on the batch


@dataclass(frozen=True, slots=True)
class _Begun:
    """Presents a routing that has begun as its prompt's router."""

    routing: Routing
    pending: Pending

    def ask(self, prompt: Prompt) -> tuple[Ask, ...]:
        """What it asks."""
        return self.pending.asks

    def decide(self, prompt: Prompt, results: Sequence[Result] = ()) -> Route:
        """Where the prompt goes."""
        return self.routing.finish(self.pending, results)


def begin_routing(
    routing: Routing, query: Query, texts: Mapping[str, Text], residents: Callable[[], frozenset[str]]
) -> Pending:
    """The first step of a query's routing; `residents` is called only if the router prefers resident experts.

    Raises NotFoundError, RequestError.
    """
    prompt, resident = prompt_of(query), residents() if routing.prefers_resident else frozenset[str]()

    def unfit(name: str) -> str:
        return texts[name].unfit(query)

    if query.embeds and query.model in routing.composition.names:  # even if the composition has its expert's name
        return Pending(prompt, (), Route(query.model, 1.0, (), f"{query.model} was named as the model"), None)
    return routing.begin(prompt, query.model or None, query.previous_expert or None, resident, unfit)


class Routings:
    """The routings in flight. A model is asked greedily, through its own chat template: equal prompts get equal routes.

    `made_up`: the device computes no numbers, so a model's answer there names no expert.
    """

    def __init__(
        self, routing: Routing, texts: Mapping[str, Text], models: Mapping[str, Model], engine: Engine, made_up: bool
    ) -> None:
        self._routing, self._texts, self._models, self._engine = routing, texts, models, engine
        self._made_up = made_up
        self._jobs: dict[str, RoutingJob] = {}
        self._owners: dict[str, str] = {}

    def use(self, routing: Routing) -> Routing:
        """Use this routing, which needs no teaching, from now on; returns it."""
        self._routing = routing
        return routing

    def teach(self, device: str, folder: Path) -> Routing:
        """Compute what the router must know before its first decision, and wait; returns the routing taught with it.

        Earlier results on this `device` are cached in `folder`. One of them is recomputed all the same: this loads the
        model, and if the result differs, the cache is discarded. On a synthetic device nothing is computed.
        Raises the failure of a request.
        """
        wanted = () if self._made_up else self._routing.to_teach
        if not wanted:
            return self._routing
        asks, model = [self._request(f"example-{i}", ask) for i, ask in enumerate(wanted)], wanted[0].expert
        kept = VectorCache(self._models[model], self._texts[model].embedding, device, folder)
        keys = [VectorCache.key_of(ask.prompt_ids) for ask in asks]
        known = kept.read()
        wants = dict(zip(keys, asks, strict=True))
        new = {key: ask for key, ask in wants.items() if key not in known}
        one, is_new = next((key for key in keys if key in known), keys[0]), bool(new)
        made = self._pooled({one: wants[one]} | new)
        if _differ(known.get(one), made[one]):
            made |= self._pooled({key: ask for key, ask in wants.items() if key not in made})
            known, is_new = {}, True
        vectors = {key: made.get(key) or known[key] for key in keys}
        if is_new:
            kept.write(vectors, known)
        whole_ND = apply_layers(self._texts[model].embedding, [vectors[key] for key in keys])
        self._routing = self._routing.taught([tuple(vector_D.tolist()) for vector_D in whole_ND])
        return self._routing

    def _pooled(self, asked: Mapping[bytes, Request]) -> dict[bytes, tuple[float, ...]]:
        """The model's pooled vectors for these requests, before its dense layers. Raises the first failure."""
        keys = {ask.request_id: key for key, ask in asked.items()}
        made: dict[bytes, tuple[float, ...]] = {}
        for ask in asked.values():
            self._engine.submit(ask)
        while not self._engine.idle:
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                made[keys[output.request_id]] = output.vector
        return made

    def begin(self, request_id: str, pending: Pending, query: Query) -> None:
        """Submit what the router asks, with the client and priority of the query itself.

        Raises RequestError or OversizeError, and UnsupportedError on a synthetic device; nothing is queued then.
        """
        if self._made_up:
            fact = "its router asks a model, and this device's tokens are synthetic"
            raise UnsupportedError(self._routing.composition.name, fact, "name the expert, or use coterie simulate")
        job = RoutingJob(request_id, _Begun(self._routing, pending), pending.prompt)
        self._jobs[request_id] = job
        try:
            for ask_id, ask in job.asks.items():
                asked = self._request(ask_id, ask)
                self._engine.submit(replace(asked, client=query.client, priority=query.priority))
                self._owners[ask_id] = request_id
        except BaseException:
            self.drop(request_id)
            raise

    def take(self, output: Output) -> str | None:
        """Take an answer; returns the id of the routing that it decides, if any."""
        owner = self._owners.get(output.request_id)
        if owner is None:
            return None
        job = self._jobs[owner]
        job.take(self._whole(output))
        if output.finish_reason is not None:
            del self._owners[output.request_id]
        return owner if job.done else None

    def done(self, request_id: str) -> bool:
        """True if a routing in flight is decided."""
        return self._jobs[request_id].done

    def cancel(self, request_id: str) -> None:
        """Cancel what it asks, at the next step."""
        for ask_id in self._jobs[request_id].asks:
            self._engine.cancel(ask_id)

    def route(self, request_id: str) -> Route:
        """The decision of a decided routing, which is then forgotten. Raises the failure of what was asked."""
        job = self._jobs[request_id]
        self.drop(request_id)
        return job.route()

    def drop(self, request_id: str) -> None:
        """Forget a routing, if it is in flight, and cancel what it still asks."""
        job = self._jobs.pop(request_id, None)
        for ask_id in job.asks if job is not None else ():
            if self._owners.pop(ask_id, None) is not None:
                self._engine.cancel(ask_id)

    def _whole(self, output: Output) -> Output:
        """An answer with the model's dense layers applied to its vector, if it has one."""
        if not output.vector:
            return output
        (vector_D,) = apply_layers(self._texts[output.expert_id].embedding, [output.vector])
        return replace(output, vector=tuple(vector_D.tolist()))

    def _request(self, ask_id: str, ask: Ask) -> Request:
        if ask.embeds:
            return self._vector(ask_id, ask)
        query, text, model = Query.text(ask.text), self._texts[ask.expert], self._models[ask.expert]
        ids = text.encode(query, Prompt.from_messages([m.to_dict() for m in query.messages]))
        ends, words = model.end_ids, text.detokenizer(query, ids)
        return Request(ask_id, ask.expert, ids, ask.max_tokens, end_ids=ends, detokenizer=words)

    def _vector(self, ask_id: str, ask: Ask) -> Request:
        """A request for a vector; a text longer than the model's context is truncated."""
        query, text = query_of(ask.text, ask.expert), self._texts[ask.expert]
        ids = text.encode(query, prompt_of(query), self._models[ask.expert].max_prompt_tokens)
        pooling = text.embedding.pooling
        return Request(ask_id, ask.expert, ids, 1, reuse=pooling == "last", pooling=pooling)


def _differ(kept: Sequence[float] | None, made: Sequence[float]) -> bool:
    """Whether a cached vector differs from a new one by more than rounding."""
    if kept is None or len(kept) != len(made):
        return kept is not None
    apart, length = np.linalg.norm(np.subtract(kept, made)), np.linalg.norm(made)
    return bool(apart > _ROUNDING * length)

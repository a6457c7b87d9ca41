"""Ready: a query prepared for the engine, in any thread: its route, its tokens, and the constraint on its answer.

    query -> routing begun -> route -> tokens, constraint -> Request        or only the first, if a model must be asked

Knows nothing about engines or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from coterie.api.inflight import tokens_to_draw
from coterie.api.sampling import settled
from coterie.api.texts import Text
from coterie.api.types import Query
from coterie.composition.router import Prompt, Route
from coterie.composition.routing import Pending, Routing, with_capability
from coterie.core.errors import ContextError, RequestError
from coterie.engine.request import Request
from coterie.engine.served import too_long
from coterie.graph.program import KvShape
from coterie.models.model import Model


@dataclass(frozen=True, slots=True)
class Ready:
    """A query whose routing has `begun`; with its route and its request (without an id), unless a model is asked first.

    `text`: the one that encoded the request.
    """

    query: Query
    begun: Pending
    route: Route | None = None
    request: Request | None = None
    text: Text | None = None

    @property
    def expert(self) -> str:
        """The model to run first: the expert, or a model that the router asks."""
        return self.begun.asks[0].expert if self.route is None else self.route.expert

    def is_current(self, texts: Mapping[str, Text], names: Collection[str]) -> bool:
        """Whether its expert is still served with the same Text, which a rescan may have replaced or removed."""
        return self.text is None or (self.text.expert in names and texts[self.text.expert] is self.text)


@dataclass(frozen=True, slots=True)
class Experts:
    """What is known about each expert: its tokenizer, its model, and its tokens that the KV cache holds (`holds`).

    `texts` and `models` grow while a folder is served.
    """

    texts: Mapping[str, Text]
    models: Mapping[str, Model]
    holds: Callable[[KvShape], int]

    def of(self, name: str) -> tuple[Text, Model]:
        """Both; the text is read first, because a rescan in another thread writes a new model first, then its text."""
        text = self.texts[name]
        return text, self.models[name]


def prepared(query: Query, begun: Pending, routing: Routing, experts: Experts) -> Ready:
    """A query whose routing has begun, prepared as far as possible without a model. Raises what `request_for` does."""
    if begun.asks:
        return Ready(query, begun)
    others = () if begun.route is not None else routing.others  # an expert that was named is final
    route, request, text = request_for(query, begun.prompt, routing.finish(begun), others, experts)
    return Ready(query, begun, route, request, text)


def request_for(
    query: Query, prompt: Prompt, route: Route, others: Sequence[str], experts: Experts
) -> tuple[Route, Request, Text]:
    """The request to a route's expert, or to another one, as by `route_that_fits`.

    Raises RequestError, UnsupportedError, and ContextError: early, as each of many choices of one prompt would hold its
    tokens.
    """
    route, text, model, ids = route_that_fits(query, prompt, route, others, experts)
    if len(ids) > model.max_prompt_tokens:
        raise too_long(text.expert, f"{len(ids)} tokens", model.max_context, model.max_prompt_tokens)
    return route, replace(_request(query, ids, text, model), client=query.client, priority=query.priority), text


def route_that_fits(
    query: Query, prompt: Prompt, route: Route, others: Sequence[str], experts: Experts
) -> tuple[Route, Text, Model, tuple[int, ...]]:
    """The route, or, if the prompt is too long for its expert, one to the next expert for which it is not.

    That is a runner-up, or else one of the `others`. If the prompt is too long for all of them, the route stays, and
    its expert will refuse it. Returned with the expert's Text and model and the prompt's tokens.

    Raises RequestError, UnsupportedError; ContextError if the text is so long that it was not tokenised.
    """
    first, read, refusals = route.expert, dict[str, tuple[Text, Model, tuple[int, ...]]](), dict[str, ContextError]()

    def unfit(name: str) -> str:
        text, model = experts.of(name)
        if name != first and (why := text.unfit(query)):
            return why
        try:
            ids = text.encode(query, prompt, limit=model.max_prompt_tokens)
        except ContextError as error:
            refusals[name] = error.with_traceback(None)  # its frames would keep this one, and the text, alive
            return f"has a context of {model.max_context} tokens, and the prompt more"
        except RequestError as error:
            if name == first:
                raise
            return error.fact
        read[name] = text, model, ids
        return _too_long(len(ids), model, experts.holds(model.kv))

    route = with_capability(route, unfit, others)  # calls `unfit` once per expert
    if route.expert in refusals:
        raise refusals.pop(route.expert)
    return route, *read[route.expert]


def _too_long(count: int, model: Model, holds: int) -> str:
    """Why a prompt of this length cannot run; empty: it can. The engine checks again, counting tokens to generate."""
    if count > model.max_prompt_tokens:
        return f"has a context of {model.max_context} tokens, and the prompt {count}"
    return f"has room for {holds} tokens in the KV cache, and the prompt {count}" if count > holds else ""


def _request(query: Query, ids: tuple[int, ...], text: Text, model: Model) -> Request:
    """The engine's request, without id and client. Raises RequestError, UnsupportedError.

    Tokenising millions of characters, and compiling a large grammar, takes seconds.
    """
    if query.embeds:
        pooling = text.embedding.pooling
        reuse, types = pooling == "last", text.types(query)
        return Request("", text.expert, ids, 1, reuse=reuse, pooling=pooling, types=types)
    sampling, choice = settled(query, model.advised.sampling)
    return Request(
        request_id="",
        expert_id=text.expert,
        prompt_ids=ids,
        max_tokens=tokens_to_draw(query, model.max_context - len(ids), text.chats(query)),
        sampling=sampling,
        stop=(query.stop,) if isinstance(query.stop, str) else query.stop,
        end_ids=text.ends(query, model.end_ids),
        ignore_end=query.ignore_end,
        detokenizer=text.detokenizer(query, ids),
        reuse=not query.choice.score_prompt,  # nothing is left of logits
        choice=text.choice(replace(query, choice=choice), ids, model.end_ids),
        prediction=text.prediction(query),
    )

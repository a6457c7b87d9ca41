"""Ready: a query as its expert will have it, found before the engine hears of it.

    query -> routing begun -> route -> tokens, form -> Request        where a model is asked for the route: not so far

Knows nothing about engines or threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coterie.api.inflight import to_draw
from coterie.api.sampling import settled
from coterie.api.texts import Text
from coterie.api.types import Query
from coterie.composition.router import Prompt, Route
from coterie.composition.routing import Pending, Routing
from coterie.engine.request import Request
from coterie.models.model import Model


@dataclass(frozen=True, slots=True)
class Ready:
    """A query whose routing has `begun`; with its route, and its request without an id, unless a model is asked.

    `text` made the request's tokens.
    """

    query: Query
    begun: Pending
    route: Route | None = None
    request: Request | None = None
    text: Text | None = None

    def is_current(self, texts: Mapping[str, Text]) -> bool:
        """Whether its expert still reads as it did: after a rescan the same name may have another tokenizer."""
        return self.text is None or texts[self.text.expert] is self.text


def made_ready(
    query: Query, begun: Pending, routing: Routing, texts: Mapping[str, Text], models: Mapping[str, Model]
) -> Ready:
    """A query whose routing has begun, as far as it gets without a model. Raises what `request_of` does."""
    if begun.asks:
        return Ready(query, begun)
    route = routing.finish(begun)
    text = texts[route.expert]  # before its model: a rescan in another thread puts a new model first, then its text
    return Ready(query, begun, route, request_of(query, begun.prompt, text, models[route.expert]), text)


def request_of(query: Query, prompt: Prompt, text: Text, model: Model) -> Request:
    """What the engine is asked, without an id yet. Raises RequestError, UnsupportedError.

    Millions of letters take seconds to become tokens, and so does a large form to be compiled.
    """
    ids = text.encode(query, prompt)
    sampling, choice = settled(query, model.advised.sampling)
    return Request(
        request_id="",
        expert_id=text.expert,
        prompt_ids=ids,
        max_tokens=to_draw(query, model.max_context - len(ids), text.chats(query)),
        sampling=sampling,
        stop=(query.stop,) if isinstance(query.stop, str) else query.stop,
        end_ids=text.ends(query, model.end_ids),
        ignore_end=query.ignore_end,
        detokenizer=text.detokenizer(query, ids),
        reuse=not query.choice.score_prompt,  # nothing is left of logits
        client=query.client,
        choice=text.choice(replace(query, choice=choice), ids, model.end_ids),
        prediction=text.prediction(query),
    )

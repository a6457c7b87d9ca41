"""`truncation: auto`: drops the oldest exchanges of a conversation that is longer than its expert's context.

    system | user 1, assistant 1 | user 2, call, result, assistant 2 | user 3    -> system | user 3

What remains starts with a user message, so that no result lacks its call, and no template sees an answer first.

Knows nothing about how an answer is written.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from coterie.api import Query, Serving
from coterie.api.texts import Text
from coterie.api.types import prompt_of
from coterie.core.errors import ContextError
from coterie.server.choices import EndpointRequest, respond
from coterie.server.worker import Worker

# Fraction of a context (1/4, 1/2) reserved for an answer: one without a limit of its own, and at most.
USUAL_SHARE, MAX_SHARE = 4, 2


async def respond_within(request: Request, worker: Worker, asked: EndpointRequest) -> Response:
    """As `respond`, for one query, which is shortened until it fits its expert's context. Raises CoterieError.

    It repeats, as a router may choose another expert for the shortened query, for which it is too long again.
    """
    while True:
        try:
            return await respond(request, worker, asked)
        except ContextError as error:
            (query,), expert = asked.queries, error.where
            shorter = await worker.run_in_pool(partial(shortened, query, expert))
            if shorter is None:
                raise
            asked.queries = (shorter,)


def as_read(query: Query, expert: str, coterie: Serving) -> Query:
    """A query as its expert reads it: shortened if it is too long and can be. Raises RequestError."""
    if _holds(coterie.texts[expert], query, coterie.models[expert].max_prompt_tokens):
        return query
    return shortened(query, expert, coterie) or query


def _holds(text: Text, query: Query, limit: int) -> bool:
    """Whether a prompt has at most `limit` tokens."""
    try:
        return len(text.encode(query, prompt_of(query), limit=limit)) <= limit
    except ContextError:
        return False


def shortened(query: Query, expert: str, coterie: Serving) -> Query | None:
    """The query without its oldest exchanges: as few as possible, but at least one.

    What remains leaves room in the context for the answer, or, if not even the last exchange does, for one token. None
    if the last exchange leaves not even that.
    """
    text, model = coterie.texts.get(expert), coterie.models.get(expert)
    messages = query.messages
    spoken = [place for place, message in enumerate(messages) if message.role != "system"]
    cuts = [place for place in spoken[1:] if messages[place].role == "user"]
    if text is None or model is None or not cuts:
        return None
    max_prompt_tokens = model.max_prompt_tokens
    room = min(query.max_tokens or max_prompt_tokens // USUAL_SHARE, max_prompt_tokens // MAX_SHARE)

    def cut(place: int) -> Query:
        kept = [message for message in messages[:place] if message.role == "system"]
        return replace(query, messages=(*kept, *messages[place:]))

    found = bisect_left(cuts, True, key=lambda place: _holds(text, cut(place), max_prompt_tokens - room))
    if found < len(cuts):
        return cut(cuts[found])
    last = cut(cuts[-1])
    return last if _holds(text, last, max_prompt_tokens) else None

"""`truncation` `auto` of responses: the oldest exchanges go until the expert's context holds the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Query
from coterie.api.types import ToolCall, prompt_of
from coterie.server.shortening import shortened

CONTEXT = 512


@pytest.fixture(scope="module")
def coterie(tmp_path_factory: pytest.TempPathFactory) -> Coterie:
    root: Path = tmp_path_factory.mktemp("short")
    write_expert(root / "ada", 1, max_position_embeddings=CONTEXT)
    return Coterie.open(root)


@pytest.fixture(scope="module")
def url(coterie: Coterie) -> Iterator[str]:
    with served(coterie) as found:
        yield found


def items(count: int, letters: int = 60) -> list[dict[str, Any]]:
    """So many questions, and an answer to each but the last."""
    made: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}]
    for number in range(count):
        made.append({"role": "user", "content": f"{number} " + "x" * letters})
        made.append({"role": "assistant", "content": f"so {number}"})
    return made[:-1]


def tokens(coterie: Coterie, query: Query) -> int:
    return len(coterie.texts["ada"].encode(query, prompt_of(query)))


def asked(count: int, letters: int = 60, limit: int | None = None) -> Query:
    return Query(tuple(Message(one["role"], one["content"]) for one in items(count, letters)), "ada", max_tokens=limit)


@pytest.mark.parametrize("limit", [None, 1, 100, 10_000])
def test_as_few_go_as_leave_room_for_the_answer(coterie: Coterie, limit: int | None) -> None:
    query, most = asked(40, limit=limit), CONTEXT - 1
    found = shortened(query, "ada", coterie)
    assert found is not None
    room = {None: most // 4, 1: 1, 100: 100, 10_000: most // 2}[limit]
    system, *said = found.messages
    assert (system, said[0].role) == (query.messages[0], "user")
    assert said == list(query.messages[-len(said) :])
    assert tokens(coterie, found) <= most - room
    longer = Query((system, *query.messages[-len(said) - 2 :]), "ada")
    assert tokens(coterie, longer) > most - room
    assert found.max_tokens == limit


def test_results_of_calls_go_with_them(coterie: Coterie) -> None:
    called = Message("assistant", "", (ToolCall("c1", "add", {"a": 1}),))
    came = Message("tool", "y" * 300, call_id="c1", name="add")
    said = (Message("user", "x" * 300), called, came, Message("assistant", "so"), Message("user", "and?"))
    found = shortened(Query(said, "ada"), "ada", coterie)
    assert found is not None
    assert found.messages == said[-1:]


def test_what_does_not_leave_room_may_still_fit(coterie: Coterie) -> None:
    """The last exchange alone takes more than is meant for prompts, and less than the context."""
    query = asked(2, letters=420)
    found = shortened(query, "ada", coterie)
    assert found is not None
    assert found.messages == (query.messages[0], query.messages[-1])
    assert CONTEXT - CONTEXT // 4 < tokens(coterie, found) < CONTEXT


@pytest.mark.parametrize("query", [asked(3, letters=600), asked(1, letters=600), Query.text("x" * 600)])
def test_the_last_question_never_goes(coterie: Coterie, query: Query) -> None:
    assert shortened(query, "ada", coterie) is None
    assert shortened(query, "nobody", coterie) is None


@pytest.mark.parametrize("count", [2, 40])
def test_input_tokens_are_those_that_would_be_read(url: str, http: httpx.Client, count: int) -> None:
    body = {"model": "ada", "input": items(count), "max_output_tokens": 4, "truncation": "auto"}
    counted = http.post(f"{url}/v1/responses/input_tokens", json=body).json()["input_tokens"]
    assert counted == http.post(f"{url}/v1/responses", json=body).json()["usage"]["input_tokens"]
    whole = http.post(f"{url}/v1/responses/input_tokens", json={**body, "truncation": "disabled"}).json()
    assert (whole["input_tokens"] > counted) == (count == 40)
    alone = http.post(f"{url}/v1/responses/input_tokens", json={**body, "input": "x" * 600}).json()
    assert alone["input_tokens"] > CONTEXT  # of what cannot be shortened


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_may_go_on_for_ever(url: str, http: httpx.Client, stream: bool) -> None:
    """By the store too, which has all of it."""
    body = {"model": "ada", "input": items(40), "max_output_tokens": 4, "truncation": "auto", "temperature": 0}
    assert http.post(f"{url}/v1/responses", json={**body, "truncation": "disabled"}).status_code == 400
    first = http.post(f"{url}/v1/responses", json=body).json()
    assert (first["truncation"], first["status"]) == ("auto", "incomplete")
    assert CONTEXT // 2 < first["usage"]["input_tokens"] < CONTEXT
    more = {**body, "input": "and?", "previous_response_id": first["id"], "stream": stream}
    got = http.post(f"{url}/v1/responses", json=more)
    assert got.status_code == 200
    assert ("event: response.incomplete" if stream else '"status":"incomplete"') in got.text
    listed = http.get(f"{url}/v1/responses/{first['id']}/input_items?limit=100").json()
    assert len(listed["data"]) == len(items(40))
    got = http.post(f"{url}/v1/responses", json={**more, "input": "x" * 600})
    assert (got.status_code, got.json()["error"]["code"]) == (400, "context_length_exceeded")

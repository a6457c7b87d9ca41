"""Events of streams: those of plain text, which are written around their text, are what writing all of them gives."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from coterie.api import Answer, Chunk, Message, Query
from coterie.api.logprobs import TokenLogprob
from coterie.composition.router import Route
from coterie.engine.request import ChoiceParams
from coterie.server.completions import CompletionBody, TextAnswers
from coterie.server.openai import MARK, ChatAnswers, ChatBody
from coterie.server.worker import Sink

TEXTS = ("", "a", ' "b"\\\n', "\u00e9\u4e16\U0001f600\x00\u2028", MARK, json.dumps(MARK), "", "z")
NAME = f'x"{MARK}'  # of an expert, at its worst


def answer(text: str) -> Answer:
    route = Route(NAME, 1.0, (), "asked for")
    return Answer("1", text, (1,), NAME, route, "length", 0, 3, True, 0.0, 0.1, 0.2, 5.0, False)


def chunks(found: tuple[TokenLogprob, ...] = ()) -> list[Chunk]:
    said = [Chunk("1", NAME, text, (1,), logprobs=found) for text in TEXTS]
    return [*said, Chunk("1", NAME, "end", (1,), answer("".join(TEXTS) + "end"), logprobs=found)]


def chat(choice: ChoiceParams, n: int, calls: object = None) -> ChatAnswers:
    query = Query((Message("user", "hi"),), choice=choice)
    texts = {NAME: SimpleNamespace(calls=lambda _: calls)}
    return ChatAnswers(ChatBody(query, True, False, n), 7, texts)


def completion(choice: ChoiceParams, n: int, echo: bool = False) -> TextAnswers:
    query = Query((Message("user", "hi"),), raw=True, choice=choice)
    return TextAnswers(CompletionBody((query,), True, False, n, False, echo), 7)


class Letters:
    """Holds the text of what might be a call back, as those that look for calls do."""

    num_calls, cut = 0, False

    def push(self, text: str) -> list[str]:
        return [text.upper()] if text else []

    def flush(self) -> list[str]:
        return ["."]


FOUND = (TokenLogprob(1, "a", b"a", -0.5, ()),)
WAYS = {
    "chat": lambda: chat(ChoiceParams(), 2),
    "chat that looks for calls": lambda: chat(ChoiceParams(), 2, Letters()),
    "chat with logprobs": lambda: chat(ChoiceParams(top_logprobs=0), 2),
    "completion": lambda: completion(ChoiceParams(), 2),
    "completion with echo": lambda: completion(ChoiceParams(), 2, echo=True),
    "completion with logprobs": lambda: completion(ChoiceParams(top_logprobs=0), 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_plain_pieces_are_what_writing_all_of_an_event_gives(way: str) -> None:
    quick, slow = WAYS[way](), WAYS[way]()
    found = FOUND if way.endswith("logprobs") else ()
    shortcuts = 0
    for chunk in chunks(found):
        for index in (0, 1):
            shortcuts += quick.plain(index, chunk) is not None
            written = [slow.encode(event) for event in slow.events(index, chunk)]
            assert list(quick.said(index, chunk)) == written
    assert shortcuts == (0 if "logprobs" in way or "calls" in way else 2 * (len(TEXTS) - 1))


def test_a_sink_gives_in_order_what_came_before_and_after_somebody_waits() -> None:
    async def taken() -> list[str]:
        sink, got = Sink(), list[str]()
        assert sink.empty()
        sink.put(Chunk("a", ""))
        sink.put(Chunk("b", ""))
        got += [(await sink.take()).request_id, (await sink.take()).request_id]
        waiting = asyncio.ensure_future(sink.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        sink.put(Chunk("c", ""))
        sink.put(Chunk("d", ""))
        got += [(await waiting).request_id, (await sink.take()).request_id]
        left = asyncio.ensure_future(sink.take())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait({left})
        sink.put(Chunk("e", ""))  # who left took nothing
        return [*got, (await sink.take()).request_id]

    assert asyncio.run(taken()) == ["a", "b", "c", "d", "e"]

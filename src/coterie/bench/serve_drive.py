"""Sends many streamed requests to a server over HTTP, and records when which piece of each answer came.

    closed loop   a fixed number in flight; each one that ends is replaced by the next
    open loop     each at its scheduled time, whether or not others have ended; latency counts from that time

Pieces are stored raw and parsed afterwards, so that parsing takes no CPU time from the server.
Knows nothing about workloads or what is reported. Source: the OpenAI API reference, "Create chat completion" (streams).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

from coterie.bench.http_stream import BrokenError, Client, Origin

TIMEOUT_S = 600.0
CUT = "stream cut"
_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")  # fields of a delta that count as output


@dataclass(frozen=True, slots=True)
class Answered:
    """The outcome of one request: times of the first and last text, in seconds from when it was due, and tokens.

    `error` is empty if the answer was complete; `message`: the server's own message. `counted`: `tokens` comes from the
    server's usage; otherwise it is the number of pieces of text, often one per token.
    """

    number: int
    first_s: float = 0.0
    last_s: float = 0.0
    tokens: int = 0
    prompt_tokens: int | None = None
    error: str = ""
    message: str = ""
    counted: bool = True


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A run: the outcomes, the time from its start to the end of the last request, and the client's CPU time."""

    answers: Sequence[Answered]
    elapsed_s: float
    client_cpu_s: float


@dataclass(slots=True)
class Sent:
    """A request in flight, and the pieces of its answer with their times."""

    number: int
    due_s: float
    status: int = 0
    broken: str = ""
    end_s: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    def take(self, data: bytes) -> None:
        """Record a piece."""
        self.pieces.append((perf_counter(), data))


def drive(
    origin: Origin,
    path: str,
    bodies: Sequence[bytes],
    in_flight: int = 0,
    at_s: Sequence[float] = (),
    timeout_s: float = TIMEOUT_S,
) -> LoadResult:
    """Send every body: `in_flight` at once or, if that is 0, each at its time `at_s`."""
    cpu_s = process_time()
    sent, begun_s = asyncio.run(_Drive(origin, path, bodies, timeout_s).run(in_flight, at_s))
    cpu_s = process_time() - cpu_s
    elapsed_s = max((one.end_s for one in sent), default=begun_s) - begun_s
    return LoadResult([read(one) for one in sent], elapsed_s, cpu_s)


class _Drive:
    """The requests of one run."""

    def __init__(self, origin: Origin, path: str, bodies: Sequence[bytes], timeout_s: float) -> None:
        self._client = Client(origin)
        self._path, self._bodies, self._timeout_s = path, bodies, timeout_s
        self._sent: list[Sent] = []

    async def run(self, in_flight: int, at_s: Sequence[float]) -> tuple[list[Sent], float]:
        begun_s = perf_counter()
        try:
            if in_flight:
                numbers = iter(range(len(self._bodies)))
                await asyncio.gather(*(self._in_turn(numbers) for _ in range(min(in_flight, len(self._bodies)))))
            else:
                await asyncio.gather(*(self._due(number, begun_s + s) for number, s in enumerate(at_s)))
        finally:
            self._client.close()
        return sorted(self._sent, key=lambda one: one.number), begun_s

    async def _in_turn(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._ask(number, perf_counter())

    async def _due(self, number: int, due_s: float) -> None:
        await asyncio.sleep(due_s - perf_counter())
        await self._ask(number, due_s)

    async def _ask(self, number: int, due_s: float) -> None:
        one = Sent(number, due_s)
        self._sent.append(one)
        try:
            async with asyncio.timeout(self._timeout_s):
                one.status = await self._client.post(self._path, self._bodies[number], one.take)
        except BrokenError as error:
            one.broken = CUT if one.pieces else str(error)
        except TimeoutError:
            one.broken = "timeout"
        one.end_s = perf_counter()


def read(one: Sent) -> Answered:
    """Parse the pieces of an answer."""
    if one.status not in (0, 200):
        body = b"".join(data for _, data in one.pieces)
        return Answered(
            one.number, error=str(one.status), message=_message(_parsed(body)) or body[:200].decode(errors="replace")
        )
    texts: list[float] = []
    tokens: dict[str, int] = {}
    ended = False
    for at_s, event in _events(one.pieces):
        if event is None:
            ended = True
            continue
        if event.get("error"):
            return Answered(one.number, error="error event", message=_message(event))
        choice: dict[str, Any] = next(iter(event.get("choices") or ()), {})
        if choice.get("text") or any((choice.get("delta") or {}).get(name) for name in _TEXTS):
            texts.append(at_s)
        ended = ended or choice.get("finish_reason") is not None
        tokens = event.get("usage") or tokens
    if one.broken or not ended:
        return Answered(one.number, error=one.broken or (CUT if texts else "no stream"))
    counted = tokens.get("completion_tokens")
    return Answered(
        one.number,
        first_s=(texts[0] if texts else one.end_s) - one.due_s,
        last_s=(texts[-1] if texts else one.end_s) - one.due_s,
        tokens=len(texts) if counted is None else counted,
        prompt_tokens=tokens.get("prompt_tokens"),
        counted=counted is not None,
    )


def _events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any] | None]]:
    """Each event, with the time at which it was complete; None for the final [DONE]."""
    rest = b""
    for at_s, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data" and value.strip() == b"[DONE]":
                yield at_s, None
            elif name == b"data" and isinstance(event := _parsed(value), dict):
                yield at_s, event


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _message(body: Any) -> str:
    """The message of an error object; empty for anything else."""
    error = body.get("error") if isinstance(body, dict) else None
    found = error.get("message") if isinstance(error, dict) else error
    return str(found) if found else ""

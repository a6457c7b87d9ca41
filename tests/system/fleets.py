"""Queries for several devices, steps that are held, and events as they come.

Knows nothing about what is tested.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from coterie.api import Fleet, Options, Query
from coterie.core.sampling import PartialSampling
from coterie.engine.request import SamplingParams

NAMES = ("ada", "bob", "cyd", "dan")
TWO = Options(device="cpu", beside=("cpu",))
TEXTS = [f"{name} says the {number}th thing" for number in range(5) for name in NAMES]


def queries() -> list[Query]:
    """Greedy ones and drawn ones, to every expert."""
    asked = []
    for number, text in enumerate(TEXTS):
        sampling = PartialSampling(temperature=0.0) if number % 2 else SamplingParams(temperature=1.0, seed=number)
        asked.append(
            Query(Query.text(text).messages, NAMES[number % 4], sampling, max_tokens=4 + number % 5, ignore_end=True)
        )
    return asked


def routed(count: int) -> list[Query]:
    """Greedy ones, of which a router's model says who answers."""
    greedy = PartialSampling(temperature=0.0)
    texts = [f"the {number}th of them" for number in range(count)]
    return [Query(Query.text(text).messages, sampling=greedy, max_tokens=6) for text in texts]


@contextlib.contextmanager
def held(fleet: Fleet, which: Sequence[int] | None = None) -> Iterator[None]:
    """No device, or none of these, takes a step meanwhile."""
    goes = threading.Event()
    for member in fleet._members:
        if which is None or member.number in which:
            member.post(lambda _: goes.wait(60))
    try:
        yield
    finally:
        goes.set()


@contextlib.contextmanager
def following(url: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a server, as they come."""
    with httpx.stream("GET", f"{url}/v1/events", timeout=60) as events:
        yield (json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: "))

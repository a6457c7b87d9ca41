"""The Python face, used as scripts and notebooks use it: threads, paths, plain strings, and nobody who closes it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.system.serving import until

from coterie import Coterie, Message, Options, Query, load_composition
from coterie.api import assemble
from coterie.cli.opening import options
from coterie.core.errors import ClosedError, RequestError, UsageError
from coterie.engine.policy import Policy
from coterie.engine.request import Request

UNCLOSED = """
import sys
from coterie import Coterie, Query
coterie = Coterie.open(sys.argv[1])
stream = coterie.stream(Query.text("for ada"))
next(stream)
print(len(coterie.ask("for bob").token_ids) > 0)
"""


def test_threads_share_a_coterie(composition: Path) -> None:
    """With room for one expert, so that threads wait for each other's loads too; two of them stream."""
    prompts = [f"{i} for {name}" for i in range(3) for name in ("ada", "bob", "cyd", "dan")]

    def streamed(prompt: str) -> str:
        return "".join([chunk.text for chunk in coterie.stream(Query.text(prompt))])

    with Coterie.open(composition, Options(near_bytes=100 * 1024)) as coterie:
        alone = [coterie.ask(prompt).text for prompt in prompts]
        with ThreadPoolExecutor(6) as pool:
            asked = list(pool.map(lambda prompt: coterie.ask(prompt).text, prompts))
            assert asked == alone
            assert list(pool.map(streamed, prompts)) == alone
        assert coterie.idle


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_an_expert_in_memory_is_preferred_if_the_composition_says_so(
    composition: Path, tmp_path: Path, margin: float
) -> None:
    """With room for one expert, asked for one and then for both alike: only a margin saves the switch."""
    text = composition.read_text().replace("[router]", f'[router]\nmatch = "weight"\nprefer_resident = {margin}')
    (tmp_path / "c.toml").write_text(text)
    with Coterie.open(tmp_path / "c.toml", Options(near_bytes=100 * 1024)) as coterie:
        assert coterie.route(Query.text("for ada and bob")).expert == "ada"
        assert coterie.ask("for bob").expert == "bob"
        both = coterie.ask("for ada and bob")
        assert (both.expert, both.hit) == (("bob", True) if margin else ("ada", False))
        assert both.route.reason.startswith("bob is in memory, ada is not") == bool(margin)
        assert coterie.ask("for ada").expert == "ada"


def test_a_stream_that_is_read_slowly_has_its_last_chunk(composition: Path) -> None:
    """It ends in a step of another thread, which goes on stepping."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            coterie.ask(Query((Message("user", "for bob"),), max_tokens=60, ignore_end=True))

    with Coterie.open(composition) as coterie, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        lasts = []
        for _ in range(8):
            for chunk in coterie.stream(Query((Message("user", "for ada"),), max_tokens=4)):
                last = chunk.last
                time.sleep(0.002)
            lasts.append(last)
        done.set()
        asking.result()
    assert all(lasts)


def open_held(
    ref: str | Path, options: Options | None = None, opens: Callable[..., Any] = Coterie.open
) -> tuple[Any, threading.Event, threading.Event]:
    """A Coterie, or what `opens` opens, whose reads of the disk wait while the first event is not set; the second says
    that one does.
    """
    arrives, waits = threading.Event(), threading.Event()
    arrives.set()

    def read(*args: Any) -> int:
        if not arrives.is_set():
            waits.set()
            arrives.wait(60)
        return os.preadv(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "CpuDevice", functools.partial(assemble.CpuDevice, read=read))
        return opens(ref, options), arrives, waits


def until_idle(coterie: Coterie) -> None:
    """Return when nothing is asked any more."""
    until(lambda: coterie.idle)


def test_a_thread_that_waits_for_bytes_keeps_nobody_from_an_expert_that_is_there(composition: Path) -> None:
    coterie, arrives, waits = open_held(composition)
    with coterie, ThreadPoolExecutor(2) as pool:
        coterie.ask("for bob")
        arrives.clear()
        cold = pool.submit(coterie.ask, "for ada")
        assert waits.wait(20)
        hot = pool.submit(coterie.ask, "for bob")
        try:
            assert hot.result(10).hit
            assert not cold.done()
        finally:
            arrives.set()
        assert not cold.result().hit


def test_what_is_closed_says_so(composition: Path) -> None:
    """To who asks, and to who was in the middle of an answer."""
    with Coterie.open(composition) as coterie:
        assert coterie.ask("for ada").expert == "ada"
        stream = coterie.stream(Query((Message("user", "for bob"),), max_tokens=60, ignore_end=True))
        next(stream)
    coterie.close()
    for ask in (lambda: coterie.ask("for ada"), lambda: coterie.submit(Query.text("for bob")), lambda: next(stream)):
        with pytest.raises(ClosedError, match=r"\[four\] this Coterie is closed; use it inside its with block"):
            ask()
    assert list(stream) == []


def test_a_script_that_closes_nothing_ends_in_silence(composition: Path) -> None:
    command = [sys.executable, "-c", UNCLOSED, str(composition)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_plain_values_are_taken(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Coterie.open(composition) as coterie:
        texts = [answer.text for answer in coterie.ask_all(["for ada", Query.text("for bob")])]
        assert texts == [coterie.ask(prompt).text for prompt in ("for ada", "for bob")]
        stop = texts[0][3]
        cut = coterie.ask(Query((Message("user", "for ada"),), stop=stop))
        assert cut.text == texts[0][: texts[0].index(stop)]
        for limit in (1.5, 0, True):
            with pytest.raises(RequestError, match="max_tokens"):
                coterie.ask(Query((Message("user", "for ada"),), max_tokens=limit))
        with pytest.raises(RequestError, match="no user message"):
            coterie.ask(Query((Message("system", "for ada"),)))
    monkeypatch.chdir(composition.parent)
    composition.rename("demo")
    try:
        assert load_composition(Path("demo")).name == "four"  # as a str it is the preset
    finally:
        Path("demo").rename(composition)


def _answered(folder: Path, max_batch: int | None) -> tuple[dict[str, tuple[int, ...]], int]:
    """What 70 requests at once are answered, and the most rows that a step had."""
    rng = np.random.default_rng(3)
    made = options(kv=1 << 22, threads=2, max_batch=max_batch, speculate=0)
    with Coterie.open(folder, made) as coterie:
        engine = coterie.parts.engine
        for number in range(70):
            ids = tuple(rng.integers(0, 250, 1 + number % 5).tolist())
            engine.submit(Request(str(number), "ada", ids, 6, ignore_end=True))
        answers: dict[str, tuple[int, ...]] = {}
        while not engine.idle:
            for output in engine.step():
                answers[output.request_id] = answers.get(output.request_id, ()) + tuple(output.token_ids)
        engine.check_integrity()
        return answers, max(entry[3] for entry in engine.decisions if entry[0] == "run")


def test_a_step_has_as_many_sequences_as_suits_the_device_or_is_said_and_each_answers_as_alone(folder: Path) -> None:
    alone, rows = _answered(folder, 1)
    assert (len(alone), rows) == (70, 1)
    assert all(len(tokens) == 6 for tokens in alone.values())
    for most, found in ((None, assemble.CPU_BATCH), (65, 65), (200, 70)):
        assert _answered(folder, most) == (alone, found)
    assert assemble.policy_for("synthetic:epyc-2core") == Policy()
    with pytest.raises(UsageError, match="is not a device"):
        assemble.policy_for("abacus")

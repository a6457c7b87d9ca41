"""The chat of `coterie run`: who answers, what is remembered, and what ends what."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.system.commands import run
from tests.system.tiny import write_expert

from coterie.api import Chunk, Coterie, Message, Query
from coterie.api.types import Query as Submitted
from coterie.core.errors import RequestError

Talk = Callable[..., str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """What was submitted."""
    found: list[Query] = []
    submit = Coterie.submit

    def watched(coterie: Coterie, query: Submitted, more: int = 0) -> str:
        request_id = submit(coterie, query, more)
        found.append(query)
        return request_id

    monkeypatch.setattr(Coterie, "submit", watched)
    return found


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Types lines into the chat of a composition, and gives what it printed; an exception is raised where it stands."""

    def talked(composition: Path, lines: list[str | type[BaseException] | Callable[[], None]], *options: str) -> str:
        rest = iter(lines)

        def typed(prompt: str) -> str:
            line = next(rest)
            if isinstance(line, str):
                return line
            if isinstance(line, type):
                raise line
            line()
            return ""

        monkeypatch.setattr("coterie.cli.run.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
        monkeypatch.setattr("builtins.input", typed)
        result = run("run", composition, "--temperature", "0", *options)
        assert result.exit_code == 0, result.output
        assert list(rest) == []  # nothing else ended it
        return result.stdout

    return talked


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts with a chat template, and one without; no router."""
    root = tmp_path_factory.mktemp("chatty")
    for seed, name in enumerate(("ada", "bob", "old")):
        write_expert(root / name, seed)
    (root / "old" / "tokenizer_config.json").unlink()
    return root


def roles(query: Query) -> list[str]:
    return [message.role for message in query.messages]


def test_without_a_router_whoever_was_addressed_goes_on(chatty: Path, talk: Talk, asked: list[Query]) -> None:
    """An error takes nothing of the conversation away; /new does."""
    lines = [
        "hello",
        "@bob hello",
        "and then?",
        "@boob and you?",
        "@ada and you?",
        "and then?",
        "/new",
        "",
        "again",
        "/bye",
    ]
    shown = talk(chatty, lines, "--max-tokens", "2", "--system", "Be brief.")
    assert "you choose by @ and a name: ada, bob, old." in " ".join(shown.split())
    assert "no router to choose among 3 experts" in shown
    assert "there is no expert @boob" in shown
    answered = [line.split(" · ")[0] for line in shown.splitlines() if " · confidence 1.00 · " in line]
    assert answered == ["bob", "bob", "ada", "ada", "ada"]
    assert [len(query.messages) for query in asked] == [2, 4, 6, 8, 2]
    assert asked[0].messages[0] == Message("system", "Be brief.")
    assert roles(asked[1]) == ["system", "user", "assistant", "user"]


def test_who_has_no_chat_template_is_given_the_last_text_alone(chatty: Path, talk: Talk, asked: list[Query]) -> None:
    shown = talk(chatty, ["one", "two", EOFError], "--max-tokens", "2", "--expert", "old")
    assert shown.startswith("old. /new starts over")
    assert [query.messages for query in asked] == [(Message("user", "one"),), (Message("user", "two"),)]


def test_who_is_addressed_in_the_midst_and_has_no_chat_template(chatty: Path, talk: Talk, asked: list[Query]) -> None:
    talk(chatty, ["@ada one", "@old two", "@ada three", "/bye"], "--max-tokens", "2")
    assert [len(query.messages) for query in asked] == [1, 1, 5]


def test_a_conversation_beyond_the_context_is_begun_anew(chatty: Path, talk: Talk, asked: list[Query]) -> None:
    lines = ["hello", "word " * 60, "/new", "hello", "/bye"]
    shown = talk(chatty, lines, "--max-tokens", "2", "--expert", "ada")
    assert "the context of this expert holds 128" in shown
    assert "with all that was said before it; /new starts over" in shown
    assert [len(query.messages) for query in asked] == [1, 1]


def test_several_lines_and_a_line_that_is_given_up(chatty: Path, talk: Talk, asked: list[Query]) -> None:
    lines = [
        KeyboardInterrupt,
        '"""def f():',
        "",
        '    return 1"""',
        '"""x"""',
        '"""',
        KeyboardInterrupt,
        "/?",
        "/quit",
    ]
    shown = talk(chatty, lines, "--max-tokens", "2", "--expert", "ada")
    assert [query.messages[-1].content for query in asked] == ["def f():\n\n    return 1", "x"]
    assert shown.count("Ctrl-D ends") == 4  # at the start, twice for a line given up, and when it is asked for


def test_ctrl_c_ends_an_answer_and_not_the_chat(
    chatty: Path, talk: Talk, asked: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said until then belongs to the conversation."""
    step, steps = Coterie.step, 0

    def pressed(coterie: Coterie, within_s: float | None = None) -> list[Chunk]:
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGINT)
        return step(coterie, within_s)

    monkeypatch.setattr(Coterie, "step", pressed)
    before = signal.getsignal(signal.SIGINT)
    lines = ["hello", "go on", "/bye"]
    shown = talk(chatty, lines, "--max-tokens", "60", "--expert", "ada", "--speculate", "0")
    assert signal.getsignal(signal.SIGINT) == before
    assert shown.count(" · stopped") == 1
    assert shown.count("cut: 60 tokens are all it may have") == 1
    first = asked[1].messages[1]
    assert (first.role, 0 < len(first.content) < 60) == ("assistant", True)


def test_a_question_stopped_before_a_word_was_not_asked(
    chatty: Path, talk: Talk, asked: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Coterie.step

    def pressed(coterie: Coterie, within_s: float | None = None) -> list[Chunk]:
        if len(asked) == 2 and signal.getsignal(signal.SIGINT) not in handlers:
            handlers.append(signal.getsignal(signal.SIGINT))
            signal.raise_signal(signal.SIGINT)
            return []
        return step(coterie, within_s)

    handlers: list[object] = []
    monkeypatch.setattr(Coterie, "step", pressed)
    shown = talk(chatty, ["hello", "no, wait", "go on", "/bye"], "--max-tokens", "2", "--expert", "ada")
    assert shown.splitlines().count("stopped") == 1
    assert [len(query.messages) for query in asked] == [1, 3, 3]
    assert asked[2].messages[:2] == asked[1].messages[:2]


def test_after_an_error_ctrl_c_is_the_prompts_again(
    chatty: Path, talk: Talk, asked: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when what holds the error is cleared away, which may be within the next answer."""
    step, handlers = Coterie.step, []

    def failing(coterie: Coterie, within_s: float | None = None) -> list[Chunk]:
        handlers.append(signal.getsignal(signal.SIGINT))
        chunks = step(coterie, within_s)
        if len(asked) == 1:
            return [replace(chunk, error=RequestError("here", "it broke", "ask again")) for chunk in chunks]
        return chunks

    monkeypatch.setattr(Coterie, "step", failing)
    before = signal.getsignal(signal.SIGINT)
    gc.disable()
    try:
        shown = talk(
            chatty, ["hello", lambda: handlers.append(signal.getsignal(signal.SIGINT)), "/bye"], "--expert", "ada"
        )
    finally:
        gc.enable()
    assert "[here] it broke; ask again" in shown
    assert handlers[0] != before
    assert handlers[-1] == before


def test_another_ctrl_c_ends_all(chatty: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(coterie: Coterie, within_s: float | None = None) -> list[Chunk]:
        signal.raise_signal(signal.SIGINT)
        return []

    monkeypatch.setattr(Coterie, "step", pressed)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(AssertionError):
        talk(chatty, ["hello", "/bye"], "--expert", "ada")
    assert signal.getsignal(signal.SIGINT) == before

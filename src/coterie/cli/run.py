"""`coterie run`: asks a composition questions, from the command line, from stdin or in an interactive chat.

Knows nothing about HTTP.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from coterie.api import Answer, Chunk, Message, Options, Query, Serving, opened_on
from coterie.api.types import draw_seed
from coterie.cli.form import form_of
from coterie.cli.opening import say_left_out, with_options
from coterie.cli.options import CompositionArg, JsonOpt, TraceOpt, out, print_json, report_errors, save_trace
from coterie.core.errors import ContextError, CoterieError, RequestError
from coterie.core.sampling import PartialSampling
from coterie.core.units import format_seconds
from coterie.engine.recording import MAX_WORKS

ENDS, ANEW, HELP = ("/bye", "/exit", "/quit"), "/new", ("/?", "/help")
QUOTES = '"""'
KEYS = f"{ANEW} starts over, {QUOTES} begins and ends several lines, Ctrl-C stops an answer, {ENDS[0]} or Ctrl-D ends."
MANY_NAMES = 12
WAIT_S = 0.05  # bounds a step that waits for bytes, so that Ctrl-C is noticed
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # except tab and newline


@report_errors
@with_options(
    *("near", "pool", "kv", "kv_type", "reuse", "speculate", "draft", "device", "threads", "activations", "sampling"),
    several=True,
)
def run(
    composition: CompositionArg,
    prompt: Annotated[list[str] | None, typer.Argument(help="Questions; none reads stdin or starts a chat.")] = None,
    expert: Annotated[str, typer.Option(help="Bypass the router.")] = "",
    system: Annotated[str, typer.Option(metavar="TEXT", help="A system message before the conversation.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="No chat template: the prompt is the text itself.")] = False,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: the expert's own.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is no limit.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is no limit.")] = None,
    min_p: Annotated[float | None, typer.Option(help="0 is no limit.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1 is none; 1.1 keeps small models going.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random numbers; default: a new one per run.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be repeated.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per answer.")] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="Constrain answers to a JSON schema: a file, or the schema itself."),
    ] = None,
    json_object: Annotated[bool, typer.Option("--json-object", help="Constrain answers to any JSON object.")] = False,
    json_: JsonOpt = False,
    *,
    how: Options,
    trace: TraceOpt = None,
) -> None:
    """Query a composition; each answer shows the expert, hit or switch, and the speed."""
    drawn = draw_seed() if seed is None else seed
    asked = PartialSampling(temperature, top_k, top_p, min_p, repetition_penalty=repetition_penalty, seed=drawn)
    opening = (Message("system", system),) if system else ()
    form = form_of(json_schema, json_object)
    with opened_on(composition, replace(how, record=MAX_WORKS if trace else 0)) as coterie:
        say_left_out(coterie.composition)

        def query(text: str, before: tuple[Message, ...] = (), previous: str = "") -> Query:
            messages = (*opening, *before, Message("user", text))
            return Query(messages, expert, asked, max_tokens, tuple(stop or ()), raw, previous, form=form)

        interactive = not prompt and sys.stdin.isatty()
        if interactive:
            _chat(coterie, query, expert)
            _save(trace, coterie)
            return
        answers: list[Answer] = []
        try:
            for text in prompt or (line.rstrip("\n") for line in sys.stdin if line.strip()):
                answer = coterie.ask(query(text)) if json_ else print_stream(coterie.stream(query(text)), text)
                answers.append(answer)  # one by one: a later question may be refused
                if not json_:
                    out.print()
        finally:
            if json_ and answers:
                print_json(answers[0].to_dict() if len(answers) == 1 else [a.to_dict() for a in answers])
        _save(trace, coterie)
        if not answers:
            raise RequestError("prompt", "is empty", "give a question as an argument or on stdin")


def _save(trace: Path | None, coterie: Serving) -> None:
    if trace is not None:
        save_trace(trace, coterie.trace())


def print_stream(chunks: Iterator[Chunk], heading: str = "") -> Answer:
    """Print the heading, an answer as it streams, and one dim line of details. Raises the error that ended it.

    A terminal also shows the reasoning, dim; redirected output has only the answer.
    """
    answer, has_begun, thinks = None, False, False
    try:
        for chunk in chunks:
            if chunk.error is not None:
                raise chunk.error
            if not has_begun and heading:
                out.print(f"[bold]{escape(heading)}[/bold]")
            has_begun, answer = True, chunk.answer
            if chunk.reasoning and out.is_terminal:
                thinks = True
                out.print(f"[dim]{escape(_shown(chunk.reasoning))}[/dim]", end="", highlight=False, soft_wrap=True)
            if chunk.text and thinks:
                thinks = False
                out.print("\n")
            print(_shown(chunk.text), end="", flush=True)
    finally:
        if has_begun:
            out.print()
    if answer is None:
        raise RuntimeError("a stream ended without its last chunk")
    out.print(f"[dim]{escape(_detail(answer))}[/dim]")
    return answer


def _shown(text: str) -> str:
    """The text, with control characters replaced if it goes to a terminal, which would interpret them."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if out.is_terminal else text


def _detail(answer: Answer) -> str:
    where = "hit" if answer.hit else f"switch {format_seconds(answer.switch_s)}"
    made_up = " · synthetic tokens" if answer.synthetic else ""
    fallback = " (fallback)" if answer.route.is_fallback else ""
    if answer.finish_reason == "cancelled" and not answer.token_ids:
        return "stopped"
    rate = f"{answer.tokens_per_s:.0f} tokens/s" if answer.tokens_per_s else "1 token"
    confidence = f"confidence {answer.route.confidence:.2f}"
    first = f"first token {format_seconds(answer.ttft_s)}"
    cached = f" · {answer.cached_tokens} of {answer.prompt_tokens} prompt tokens cached" if answer.cached_tokens else ""
    guessed = f" · {answer.accepted_tokens} of {answer.guessed_tokens} drafts accepted" if answer.guessed_tokens else ""
    cut = {"length": f" · cut: {len(answer.token_ids)} tokens are all it may have", "cancelled": " · stopped"}
    ended = cut.get(answer.finish_reason, "")
    return f"{answer.expert}{fallback} · {confidence} · {where} · {first} · {rate}{cached}{guessed}{made_up}{ended}"


def _chat(coterie: Serving, query: Callable[[str, tuple[Message, ...], str], Query], expert: str) -> None:
    history: tuple[Message, ...] = ()
    expert, previous = expert and coterie.composition.expert(expert).name, ""
    with contextlib.suppress(ImportError):
        import_module("readline")  # gives input() a history and line editing
    out.print(f"[dim]{escape(_who(coterie, expert))} {escape(KEYS)}[/dim]")
    while (text := _typed()) is not None:
        if text in HELP:
            out.print(f"[dim]{escape(_who(coterie, expert))} {escape(KEYS)}[/dim]")
        elif text == ANEW:
            history = ()
            previous = "" if coterie.composition.router else previous  # keep an addressed expert, not a routed one
        if not text or text in HELP or text == ANEW:
            continue
        asked = query(text, history, previous)
        addressee = coterie.routing.split_address(text)[1]
        able = [name for name in (expert, addressee, previous) if name][:1] or coterie.composition.names
        if not any(coterie.texts[name].chats(asked) for name in able):  # a completion-only expert has no turns
            asked = query(text, (), previous)
        try:
            with contextlib.closing(_stoppable(coterie, asked)) as chunks:  # restores Ctrl-C even after an error
                answer = print_stream(chunks)
        except CoterieError as error:
            out.print(f"[red]{escape(str(error))}[/red]")
            if history and isinstance(error, ContextError):
                out.print(f"[dim]with all that was said before it; {KEYS.partition(',')[0]}[/dim]")
            continue
        if answer.finish_reason == "cancelled" and not answer.token_ids:
            continue  # a cancelled question: an empty answer must not become a turn of the conversation
        spoken = Message("assistant", answer.text, reasoning=answer.reasoning)
        history, previous = (*history, Message("user", text), spoken), answer.expert


def _who(coterie: Serving, expert: str) -> str:
    """A line that tells which experts may answer, and how to address one."""
    names = coterie.composition.names
    if expert or len(names) == 1:
        return f"{expert or names[0]}."
    shown = ", ".join(names[:MANY_NAMES]) + (f" and {len(names) - MANY_NAMES} more" if len(names) > MANY_NAMES else "")
    chooses = "the router chooses, or you do" if coterie.composition.router else "you choose"
    return f"{coterie.composition.name}: {chooses} by @ and a name: {shown}."


def _typed() -> str | None:
    """The user's input, stripped; None at the end of the chat."""
    try:
        text = input("> ").strip()
        if text.startswith(QUOTES):
            lines = [text.removeprefix(QUOTES)]
            while not lines[-1].rstrip().endswith(QUOTES):
                lines.append(input(". "))
            return "\n".join(lines).rstrip().removesuffix(QUOTES).strip()
    except EOFError:
        text = ENDS[0]
        out.print()
    except KeyboardInterrupt:  # drop the line
        out.print(f"[dim]{ENDS[0]} or Ctrl-D ends[/dim]")
        return ""
    return None if text in ENDS else text


def _stoppable(coterie: Serving, query: Query) -> Generator[Chunk]:
    """The chunks of the only query; Ctrl-C cancels it between two steps, a second Ctrl-C ends the command."""
    request_id, stops = coterie.submit(query), 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stops
        stops += 1
        coterie.interrupt()
        if stops > 1:
            signal.default_int_handler(number, frame)

    before, cancelled = signal.signal(signal.SIGINT, stop), False
    try:
        while True:
            if stops and not cancelled:
                cancelled = True
                coterie.cancel(request_id)
            for chunk in coterie.step(WAIT_S):
                yield chunk
                if chunk.answer is not None or chunk.error is not None:
                    return
    finally:
        signal.signal(signal.SIGINT, before)

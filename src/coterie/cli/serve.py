"""`coterie serve`: the HTTP server for a composition.

Knows nothing about requests.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from coterie.api import Options, Serving, opened_on
from coterie.cli.check import activation_lines, budget_line, draft_lines, sampling_lines, stored_line
from coterie.cli.listening import listening, more_files
from coterie.cli.opening import options, say_left_out, with_options
from coterie.cli.options import (
    CompositionArg,
    LeaveOutOpt,
    ResponseStoreOpt,
    TraceOpt,
    out,
    report_errors,
    save_trace,
    seconds,
)
from coterie.composition.composition import PRESETS, Composition
from coterie.core.errors import UsageError
from coterie.core.units import format_count
from coterie.engine.recording import MAX_WORKS
from coterie.server.app import make_app
from coterie.server.guard import ANY, cors_middleware
from coterie.server.keys import digests_of
from coterie.server.log import open_log
from coterie.server.response_store import DEFAULT_BYTES
from coterie.server.shutdown import GRACE_S, Server

LOOPBACK = ("127.0.0.1", "::1", "localhost")
EXAMPLE = "What is the capital of France?"
DOCUMENTS = ["Paris is the capital of France.", "It rained."]
OF_DEMO = "What is 47 plus 85?"  # the demo's experts know only their own tasks
KEYS_IN, URGENT_KEYS_IN = "COTERIE_API_KEY", "COTERIE_URGENT_KEY"


@report_errors
@with_options(*signature(options).parameters, several=True)
def serve(
    composition: CompositionArg,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    *,
    how: Options,
    uds: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Unix socket to listen on, instead of an address.")
    ] = None,
    leave_out: LeaveOutOpt = False,
    trace: TraceOpt = None,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="While this many requests wait, others are refused with 429.")
    ] = 1024,
    idle_release: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="After this time without requests (10m), return the memory of experts that are not pinned.",
        ),
    ] = None,
    response_store: ResponseStoreOpt = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar=KEYS_IN, help="Key that requests must have; repeatable."),
    ] = None,
    urgent_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=URGENT_KEYS_IN, help="Like --api-key, but only these keys allow a priority below 0; repeatable."
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            parser=seconds, metavar="TIME", help="On SIGTERM, let running answers finish for up to this long; 5s."
        ),
    ] = None,
    log_answers: Annotated[
        bool, typer.Option("--log-answers", help="Log each answer and each refusal to stderr.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Origin whose pages may call the API (CORS), e.g. http://localhost:3000; * for all; repeatable.",
        ),
    ] = None,
) -> None:
    """Serve a composition over HTTP until interrupted."""
    _check(api_key, urgent_key, allow_origin)
    how = replace(how, max_waiting=max_waiting, record=MAX_WORKS if trace else 0)
    open_log(log_answers)
    more_files()
    with listening(host, port, uds) as listener, opened_on(composition, how, leave_out) as coterie:
        listener.listen()  # clients that connect as soon as the address is printed wait instead of being refused
        stored = DEFAULT_BYTES if response_store is None else response_store
        _say(coterie, listener.getsockname(), api_key or (), allow_origin or (), stored)
        server = Server(
            make_app(coterie, api_key or (), allow_origin or (), idle_release, urgent_key or (), stored),
            GRACE_S if grace is None else grace,
        )
        try:
            server.run(sockets=[listener])  # once all requests are answered, re-raises the signal that interrupted it
        finally:
            if trace is not None:
                save_trace(trace, coterie.trace())
    if server.failed:
        raise SystemExit(1)  # the log says why; 2 is reserved for errors that a restart would not fix


def _check(api_key: list[str] | None, urgent_key: list[str] | None, allow_origin: list[str] | None) -> None:
    """Raise UsageError for invalid keys or origins, before anything is opened."""
    if not api_key and KEYS_IN in os.environ:  # set, but empty: probably a mistake, not meant to allow everyone
        raise UsageError(KEYS_IN, "is set but holds no key", "give it a key, or unset it to require none")
    if urgent_key and not api_key:
        raise UsageError(
            "--urgent-key",
            "is given without --api-key, so other clients would have no key to use",
            "give --api-key too",
        )
    digests_of((*(api_key or ()), *(urgent_key or ())))
    cors_middleware(allow_origin or ())


def _say(
    coterie: Serving,
    where: tuple[Any, ...] | str,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    stored_bytes: int = 0,
) -> None:
    """Print the address, the memory budgets, an example request, and warnings about who has access."""
    local = isinstance(where, str)
    host = "localhost" if local else str(where[0])
    url = "http://localhost" if local else f"http://{f'[{host}]' if ':' in host else host}:{where[1]}"
    asked = coterie.composition
    path, body = _example(coterie)
    show = ' -H "Authorization: Bearer $COTERIE_API_KEY"' if keys else ""
    what = f"-H 'Content-Type: application/json'{show} -d {shlex.quote(json.dumps(body))}"
    at, by = (f"unix:{where}", f" --unix-socket {shlex.quote(str(where))}") if local else (url, "")
    curl = f"curl -s{by} {url}{path} {what}"
    name, count = escape(asked.name), len(asked.experts)
    say_left_out(coterie.composition)
    out.print(f"coterie: {format_count(count, 'expert')} of [bold]{name}[/bold] at {escape(at)}")
    out.print(escape(budget_line(coterie)))
    if stored_bytes:
        out.print(stored_line(stored_bytes))
    models = coterie.models
    for line in (*draft_lines(models, coterie.members[0].plan), *sampling_lines(models), *activation_lines(models)):
        out.print(line, markup=False)
    out.print(f"try: {escape(curl)}")
    if not keys and ANY in origins:
        out.print("note: any page open in a browser here can ask, load and unload; with --api-key a key is required")
    if not keys and host not in LOOPBACK:
        out.print("note: anyone who reaches this address can ask, load and unload; with --api-key a key is required")


def _example(coterie: Serving) -> tuple[str, dict[str, Any]]:
    """The path and body of an example request: a chat, or if no expert generates text, what the first one gives."""
    asked, gives = coterie.composition, {name: coterie.models[name].gives for name in coterie.composition.names}
    named = next((name for name in asked.names if gives[name] == "tokens"), asked.names[0])
    chooses = asked.router is not None and gives[named] == "tokens"
    model, text = asked.name if chooses or len(asked.experts) == 1 else named, example_of(asked)
    if gives[named] == "vectors":
        return "/v1/embeddings", {"model": model, "input": text}
    if gives[named] == "scores":
        return "/v1/rerank", {"model": model, "query": text, "documents": DOCUMENTS}
    return "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}]}


def example_of(composition: Composition) -> str:
    """An example question: the router's first example for an expert, or else one for any model."""
    if composition.root.is_relative_to(PRESETS):
        return OF_DEMO
    examples = () if composition.router is None else composition.router.examples
    fallback = "" if composition.router is None else composition.router.fallback
    return next((example.text for example in examples if example.expert != fallback), EXAMPLE)

"""`coterie batch`: answers a file of requests in OpenAI's batch format, in process.

    IN.jsonl: custom_id, url, body -> AT_ONCE of them in the engine -> OUT.jsonl: custom_id, response, as each one ends

Knows nothing about HTTP. Source: the OpenAI API reference, "Batch": the request input and output objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.api import Answer, Options, Query, Serving, opened_on
from coterie.cli.opening import say_left_out, with_options
from coterie.cli.options import CompositionArg, out, report_errors
from coterie.core.errors import CoterieError, RequestError, UsageError, shown
from coterie.server.body import parsed, written
from coterie.server.completions import TextAnswers, parse_completion
from coterie.server.embeddings import parse_embeddings, whole
from coterie.server.openai import ChatAnswers, error_body, parse_chat
from coterie.server.rerank import parse_rerank, ranked

AT_ONCE = 1024  # requests in the engine: enough for the scheduler to find many for each expert that it loads
WAIT_S = 0.05  # bounds a step that waits for bytes, so that Ctrl-C is noticed
PAUSES_S = (1.0, 4.0)  # before the retries of requests that failed through no fault of their own
_BEGINNING = b'{"id":"batch_req_'  # the beginning of each row of answers
CHAT, COMPLETIONS, EMBEDDINGS, RERANK = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"
FIELDS = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input", RERANK: "documents"}  # what a model reads
Write = Callable[[str, int, Mapping[str, Any]], None]


@report_errors
@with_options(
    "near", "kv", "kv_type", "speculate", "device", "threads", "activations", "sampling", "max_batch", several=True
)
def batch(
    composition: CompositionArg,
    requests: Annotated[
        Path, typer.Argument(metavar="IN.jsonl", help="Requests, one JSON object per line: custom_id, url and body.")
    ],
    answers: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="The answers; rows that it already has are kept.")
    ],
    *,
    how: Options,
) -> None:
    """Answer a file of requests in OpenAI's batch format; a second run continues with unanswered requests.

    The exit status is 1 if a request failed.
    """
    with _of(requests):
        rows = _requests(requests)
    with _of(answers):
        if answers.exists() and answers.samefile(requests):
            raise UsageError(str(answers), "is the file of requests itself", "name another file for the answers")
        done = _done(answers)
        answers.open("ab").close()  # report an unwritable file before anything is loaded
    left = [line for custom_id, line in rows.items() if custom_id not in done]
    statuses = list[int]()
    with opened_on(composition, how) as coterie:
        say_left_out(coterie.composition)

        def write(custom_id: str, status: int, body: Mapping[str, Any]) -> None:
            response = {"status_code": status, "request_id": custom_id, "body": body}
            row = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": None}
            with _of(answers), answers.open("ab") as file:
                file.write(written(row, 64, within=1) + b"\n")
            statuses.append(status)

        try:
            answer_all(coterie, map(parsed, left), write)
        finally:
            answered = statuses.count(200)
            before = [done[custom_id] for custom_id in rows if custom_id in done]
            failed = len(before) - before.count(200)
            rest = f", {len(left) - len(statuses)} are left: run it again" if len(statuses) < len(left) else ""
            there = f"{len(before)} were there" + (f" ({failed} failed)" if failed else "")
            out.print(f"{answered} answered, {len(statuses) - answered} failed, {there}{rest}", markup=False)
    if answered < len(statuses) or failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Form:
    """A request's queries, and a function that makes the response's body from their answers."""

    queries: Sequence[Query]
    whole: Callable[[Sequence[Answer]], Any]
    stream: bool = False


@dataclass(slots=True)
class _Asked:
    """A request in the engine, and the answers so far, by the index of their query."""

    row: Mapping[str, Any]
    form: _Form
    answers: dict[int, Answer] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)


def answer_all(coterie: Serving, rows: Iterator[Mapping[str, Any]], write: Write) -> None:
    """Answer requests, AT_ONCE at a time; each is written once, an error as its status and body.

    A request that fails because of a device, a file or memory is retried after all others, when there is more room, and
    after a pause.
    """
    for pause_s in (*PAUSES_S, None):
        failed = list[Mapping[str, Any]]()
        for row, error in _answered_once(coterie, rows, write):
            status, body = error_body(error, FIELDS.get(str(row.get("url")), "messages"))
            if pause_s is not None and (status == 429 or status >= 500):
                failed.append(row)
            else:
                write(row["custom_id"], status, body)
        if not failed or pause_s is None:
            return
        time.sleep(pause_s)
        rows = iter(failed)


def _answered_once(
    coterie: Serving, rows: Iterator[Mapping[str, Any]], write: Write
) -> Iterator[tuple[Mapping[str, Any], CoterieError]]:
    """Write the answered requests; yield the rows of the others, with the error."""
    running: dict[str, tuple[_Asked, int]] = {}
    rest = True
    while rest or running:
        while rest and len(running) < AT_ONCE:
            row = next(rows, None)
            rest = row is not None
            if row is not None:
                try:
                    running |= _begin(coterie, row)
                except CoterieError as error:
                    yield row, error
        for chunk in coterie.step(WAIT_S) if running else ():
            asked, place = running.get(chunk.request_id, (None, 0))
            if asked is None or not chunk.last:
                continue
            if chunk.answer is not None:
                asked.answers[place] = chunk.answer
            if chunk.error is not None:
                yield asked.row, chunk.error
            elif len(asked.answers) == len(asked.ids):
                try:
                    body = asked.form.whole([asked.answers[at] for at in range(len(asked.ids))])
                except CoterieError as error:
                    yield asked.row, error
                else:
                    write(asked.row["custom_id"], 200, body)
            for request_id in asked.ids if chunk.error is not None else [chunk.request_id]:
                running.pop(request_id, None)
                coterie.cancel(request_id)  # has no effect on one that has ended


def _begin(coterie: Serving, row: Mapping[str, Any]) -> dict[str, tuple[_Asked, int]]:
    """Submit a row's queries, or none of them. Raises CoterieError if one is refused."""
    form, ids = _form(coterie, row.get("url"), row.get("body")), list[str]()
    if form.stream:
        raise RequestError("stream", "is true, but answers of a batch are not streamed", "leave it out")
    try:
        for query in form.queries:
            ids.append(coterie.submit(query))
    except CoterieError:
        for request_id in ids:
            coterie.cancel(request_id)
        raise
    asked = _Asked(row, form, ids=ids)
    return {request_id: (asked, place) for place, request_id in enumerate(ids)}


def _form(coterie: Serving, url: object, body: object) -> _Form:
    created = int(time.time())
    if url == CHAT:
        chat = ChatAnswers(parse_chat(body), created, coterie.texts)
        return _Form(chat.queries, chat.whole, chat.stream)
    if url == COMPLETIONS:
        text = TextAnswers(parse_completion(body, coterie), created)
        return _Form(text.queries, text.whole, text.stream)
    if url == EMBEDDINGS:
        inputs = parse_embeddings(body, coterie)
        return _Form(inputs.queries, lambda answers: whole(inputs, answers, coterie.texts[inputs.expert]))
    if url == RERANK:
        pairs = parse_rerank(body, coterie)
        return _Form(pairs.queries, lambda answers: ranked(pairs, answers, coterie.texts[pairs.expert]))
    raise RequestError("url", f"is {shown(url)}", f"ask one of {', '.join(FIELDS)}")


@contextlib.contextmanager
def _of(path: Path) -> Iterator[None]:
    """Context manager that turns an OSError about a file into a UsageError."""
    try:
        yield
    except OSError as error:
        fact = f"cannot be read or written: {error.strerror}"
        raise UsageError(str(path), fact, "name a file that can, or make room") from error


def _requests(path: Path) -> dict[str, bytes]:
    """A file's lines by custom_id, kept as text: parsed, they are several times as large. Raises UsageError."""
    rows = dict[str, bytes]()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parsed(line, where)
        custom_id = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(custom_id, str) or not custom_id or custom_id in rows:
            again = isinstance(custom_id, str) and custom_id in rows
            fact = f"has the custom_id {shown(custom_id)}" + (", as one before" if again else "")
            raise UsageError(where, fact, "give each request a text of its own")
        rows[custom_id] = line
    return rows


def _done(path: Path) -> dict[str, int]:
    """The statuses of the answers in a file, by custom_id; an incomplete last line is removed.

    Raises UsageError, and changes nothing, if the file holds anything else, for example the requests.
    """
    if not path.is_file():  # for example a pipe, which holds no earlier answers
        return {}
    done, kept_bytes, cut = dict[str, int](), 0, False
    with path.open("rb") as file:
        for line in file:
            cut = not line.endswith(b"\n")
            found = None if cut else _answered(line)
            if found is None and not (cut and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line))):
                raise UsageError(str(path), "has lines that are no answers of a batch", "name another file")
            if found is not None:
                done[found[0]] = found[1]
                kept_bytes += len(line)
    if cut:
        os.truncate(path, kept_bytes)
    return done


def _answered(line: bytes) -> tuple[str, int] | None:
    """The custom_id and the status in a line of answers; None if it is not an answer."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    response = row.get("response") if isinstance(row, dict) else None
    if not isinstance(response, dict) or not isinstance(row.get("custom_id"), str):
        return None
    return row["custom_id"], response.get("status_code", 0)

"""`coterie batch`: answers a file of requests in OpenAI's batch format, in process.

    IN.jsonl: custom_id, url, body -> AT_ONCE of them in the engine -> OUT.jsonl: custom_id, response, as each has ended

Knows nothing about HTTP. Source: the OpenAI API reference, "Batch": the request input and output objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.api import Answer, Coterie, Options
from coterie.cli.opening import opens, say_left_out
from coterie.cli.options import CompositionArg, out, sentences
from coterie.core.errors import CoterieError, RequestError, UsageError, shown
from coterie.server.body import parsed, written
from coterie.server.completions import TextAnswers, parse_completion
from coterie.server.openai import ChatAnswers, error_body, parse_chat

AT_ONCE = 1024  # answers that run or wait: of so many the scheduler finds many for each expert that comes in
WAIT_S = 0.05  # a step that waits for bytes lets Ctrl-C be seen
_BEGINNING = b'{"id":"batch_req_'  # of each row of answers
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Write = Callable[[str, int, Mapping[str, Any]], None]


@sentences
@opens("near", "kv", "kv_type", "speculate", "device", "threads", "activations", "sampling", "max_batch")
def batch(
    composition: CompositionArg,
    requests: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests: custom_id, url and body.")],
    answers: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="What came of each; those there stay.")],
    *,
    how: Options,
) -> None:
    """Answer a file of requests in OpenAI's batch format; run again, it goes on with those that are left."""
    with _of(requests):
        rows = _requests(requests)
    with _of(answers):
        if answers.exists() and answers.samefile(requests):
            raise UsageError(str(answers), "is the file of requests itself", "name another file for the answers")
        done = _done(answers)
        answers.open("ab").close()  # what cannot be written is said before anything is loaded
    left = [line for custom_id, line in rows.items() if custom_id not in done]
    statuses = list[int]()
    with Coterie.open(composition, how) as coterie:
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
            answered, there = statuses.count(200), len(rows) - len(left)
            rest = f", {len(left) - len(statuses)} are left: run it again" if len(statuses) < len(left) else ""
            told = f"{answered} answered, {len(statuses) - answered} failed, {there} were there{rest}"
            out.print(told, markup=False)


@dataclass(slots=True)
class _Asked:
    """A request in the engine: how its answers are written, and those that are there, by the place of their query."""

    custom_id: str
    form: ChatAnswers | TextAnswers
    answers: dict[int, Answer] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)


def answer_all(coterie: Coterie, rows: Iterator[Mapping[str, Any]], write: Write) -> None:
    """Answer requests, AT_ONCE at a time; each is written once, an error as its status and body."""
    running: dict[str, tuple[_Asked, int]] = {}
    rest = True
    while rest or running:
        while rest and len(running) < AT_ONCE:
            row = next(rows, None)
            rest = row is not None
            if row is not None:
                running |= _begin(coterie, row, write)
        for chunk in coterie.step(WAIT_S) if running else ():
            asked, place = running.get(chunk.request_id, (None, 0))
            if asked is None or not chunk.last:
                continue
            if chunk.answer is not None:
                asked.answers[place] = chunk.answer
            if chunk.error is not None:
                write(asked.custom_id, *error_body(chunk.error, asked.form.prompt_field))
            elif len(asked.answers) == len(asked.ids):
                write(asked.custom_id, 200, asked.form.whole([asked.answers[at] for at in range(len(asked.ids))]))
            for request_id in asked.ids if chunk.error is not None else [chunk.request_id]:
                running.pop(request_id, None)
                coterie.cancel(request_id)  # of one that has ended nothing is left to end


def _begin(coterie: Coterie, row: Mapping[str, Any], write: Write) -> dict[str, tuple[_Asked, int]]:
    """Ask what a row asks; nothing where it is refused, which is written."""
    custom_id, url, ids = row["custom_id"], row.get("url"), list[str]()
    try:
        form = _form(coterie, url, row.get("body"))
        if form.stream:
            raise RequestError("stream", "is true, but nobody reads along", "leave it out")
        asked = _Asked(custom_id, form)
        for query in form.queries:
            ids.append(coterie.submit(query))
    except CoterieError as error:
        for request_id in ids:
            coterie.cancel(request_id)
        write(custom_id, *error_body(error, "prompt" if url == COMPLETIONS else "messages"))
        return {}
    asked.ids = ids
    return {request_id: (asked, place) for place, request_id in enumerate(ids)}


def _form(coterie: Coterie, url: object, body: object) -> ChatAnswers | TextAnswers:
    if url == CHAT:
        return ChatAnswers(parse_chat(body), int(time.time()), coterie.texts)
    if url == COMPLETIONS:
        return TextAnswers(parse_completion(body, coterie), int(time.time()))
    raise RequestError("url", f"is {shown(url)}", f"ask {CHAT} or {COMPLETIONS}")


@contextlib.contextmanager
def _of(path: Path) -> Iterator[None]:
    """What the system says of a file, as a sentence. Raises UsageError."""
    try:
        yield
    except OSError as error:
        fact = f"cannot be read or written: {error.strerror}"
        raise UsageError(str(path), fact, "name a file that can, or make room") from error


def _requests(path: Path) -> dict[str, bytes]:
    """The lines of a file by their custom_id, not parsed, which is several times as large. Raises UsageError."""
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


def _done(path: Path) -> frozenset[str]:
    """The requests that a file has an answer to; a last line that was cut is taken away. Raises UsageError.

    Nothing is taken from a file of something else, as of requests where the two were swapped.
    """
    if not path.is_file():  # what is no file, as a pipe, has nothing to go on with
        return frozenset()
    done, whole, cut = set[str](), 0, False
    with path.open("rb") as file:
        for line in file:
            cut = not line.endswith(b"\n")
            custom_id = None if cut else _answered(line)
            if custom_id is None and not (cut and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line))):
                raise UsageError(str(path), "has lines that are no answers of a batch", "name another file")
            if custom_id is not None:
                done.add(custom_id)
                whole += len(line)
    if cut:
        os.truncate(path, whole)
    return frozenset(done)


def _answered(line: bytes) -> str | None:
    """The request that a line of answers is about; None for one that is no answer."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    found = row.get("custom_id") if isinstance(row, dict) and isinstance(row.get("response"), dict) else None
    return found if isinstance(found, str) else None

"""A composition served over HTTP while a test runs, a question to it by OpenAI's client, and one who leaves.

Knows nothing about what is asked.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import openai
import uvicorn

from coterie.api import Coterie
from coterie.server.app import make_app
from coterie.server.shutdown import HTTP


def until(holds: Callable[[], object]) -> None:
    """Return as soon as something holds; it fails where that takes a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def served(
    coterie: Coterie, keys: Sequence[str] = (), origins: Sequence[str] = (), urgent: Sequence[str] = ()
) -> Iterator[str]:
    """The server on a free port, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = make_app(coterie, keys, origins, urgent=urgent)
        server = uvicorn.Server(uvicorn.Config(app, http=HTTP, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def ask(client: openai.OpenAI, text: str, **options):
    options = {"model": "four", "max_tokens": 6, "temperature": 0, **options}
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **options)


def leaves(url: str, path: str, body: object, asked: Callable[[], object]) -> None:
    """One asks, and closes the connection as soon as something holds, which says that the request has come in."""
    data, address = json.dumps(body).encode(), httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80)) as leaving:
        leaving.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        until(asked)


def address_of(server: subprocess.Popen[str]) -> str:
    """Where a server answers, as soon as it has printed that."""
    assert server.stdout is not None
    said = ""
    while not (found := re.search(r"at (http://\S+)", said)):
        line = server.stdout.readline()
        assert line, f"it stopped after {said!r}"
        said += line
    return found[1]

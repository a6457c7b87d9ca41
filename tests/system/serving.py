"""A composition served over HTTP while a test runs, and a question to it by OpenAI's client.

Knows nothing about what is asked.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import openai
import uvicorn

from coterie.api import Coterie
from coterie.server.app import make_app
from coterie.server.shutdown import HTTP


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
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def ask(client: openai.OpenAI, text: str, **options):
    options = {"model": "four", "max_tokens": 6, "temperature": 0, **options}
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **options)

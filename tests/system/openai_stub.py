"""A stub of a server with OpenAI's API, on sockets, that answers as a test says: slowly, with errors, not to the end.

Knows nothing about models: an answer is a list of pieces to send, with waits between them.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Piece = bytes | float | None
Answer = Callable[[dict], Sequence[Piece]]


def response(status: int, body: object, kind: str = "application/json") -> bytes:
    """A whole response that is not streamed."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} So\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def event(text: str | None = None, reason: str | None = None, **more: object) -> bytes:
    """An event of a chat's stream."""
    delta = {} if text is None else {"content": text}
    choices = [] if "usage" in more else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Data as a chunk of a body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def stream(*events: Piece) -> list[Piece]:
    """Events, and waits, as a whole chunked response."""
    return [HEAD, *(chunk(one) if isinstance(one, bytes) else one for one in events), END]


@contextmanager
def stub(answer: Answer, models: object = None) -> Iterator[tuple[str, list[dict]]]:
    """Where it is, and the bodies that it was sent. None in an answer closes the connection."""
    asked: list[dict] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def one(link: socket.socket) -> None:
        with link, link.makefile("rb") as lines:
            while first := lines.readline():
                length = 0
                while (line := lines.readline().strip()) not in (b"", None):
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                body = lines.read(length)
                if first.startswith(b"GET"):
                    link.sendall(response(200, models))
                    continue
                asked.append(json.loads(body) | {"path": first.split()[1].decode()})
                for piece in answer(asked[-1]):
                    if piece is None:
                        return
                    if isinstance(piece, bytes):
                        link.sendall(piece)
                    else:
                        time.sleep(piece)

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(link,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()

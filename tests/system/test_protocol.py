"""What a server does with bytes that are no whole request, or come in pieces: over a bare socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.system.serving import served

from coterie.api import Coterie

BODY = json.dumps({"model": "ada", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
PIECE = 4096
MAX_BYTES = 1 << 26  # far more than sockets themselves hold
HEAD_BYTES = 16384  # what is held of a head that is not over


@pytest.fixture(scope="module")
def address(composition: Path) -> Iterator[tuple[str, int]]:
    with served(Coterie.open(str(composition))) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


def said(address: tuple[str, int], pieces: Iterable[bytes]) -> bytes:
    """All that the server says to these bytes, until it has said a whole answer or closes."""
    got = b""
    with socket.create_connection(address, timeout=20) as caller:
        try:
            for piece in pieces:
                caller.sendall(piece)
        except OSError:  # it was closed meanwhile; what was said before may still be there
            pass
        try:
            while not whole(got) and (data := caller.recv(65536)):
                got += data
        except ConnectionResetError:
            pass
    return got


def whole(got: bytes) -> bool:
    head, end, body = got.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end) and bool(lengths) and len(body) >= int(lengths[0].split(b":")[1])


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def chunks(body: bytes, size: int) -> bytes:
    return b"".join([b"%x\r\n%b\r\n" % (len(part), part) for part in cut(body, size)]) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("body", [POST + LENGTH + b"\r\n" + BODY, POST + CHUNKED + b"\r\n" + chunks(BODY, 5)])
def test_a_request_may_come_in_pieces(address: tuple[str, int], body: bytes, size: int) -> None:
    assert said(address, cut(body, size)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("framing", [LENGTH + b"\r\n" + BODY, CHUNKED + b"\r\n" + chunks(BODY, 1)])
def test_a_head_may_be_long(address: tuple[str, int], framing: bytes) -> None:
    more = b"X-More: " + b"a" * (HEAD_BYTES - 1024) + b"\r\n"
    assert said(address, cut(POST + more + framing, PIECE)).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_may_be_longer_than_a_head(address: tuple[str, int]) -> None:
    body = BODY + b" " * (3 * HEAD_BYTES)
    for framing in (b"Content-Length: %d\r\n\r\n" % len(body) + body, CHUNKED + b"\r\n" + chunks(body, 100)):
        assert said(address, cut(POST + framing, PIECE)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("before", "again"),
    [
        (b"POST /", b"a" * PIECE),
        (POST + b"X-More: ", b"a" * PIECE),
        (POST, b"X-More: a\r\n" * (PIECE // 11)),
        (POST + CHUNKED + b"\r\n" + chunks(BODY, 1000)[:-2], b"X-More: a\r\n" * (PIECE // 11)),
        (POST + CHUNKED + b"\r\n" + chunks(BODY, 1000)[:-2] + b"X-More: ", b"a" * PIECE),
    ],
    ids=["target", "one field", "many fields", "many fields behind a body", "one field behind a body"],
)
def test_what_is_neither_a_body_nor_a_whole_head_has_a_bound(
    address: tuple[str, int], before: bytes, again: bytes
) -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        yield before
        while taken < MAX_BYTES:
            yield again
            taken += len(again)

    got = said(address, pieces())
    assert taken < MAX_BYTES
    assert b" 200 OK" not in got
    assert not got or got.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "bytes_", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", POST + b": x\r\n\r\n"]
)
def test_what_is_no_http_is_told_so(address: tuple[str, int], bytes_: bytes) -> None:
    assert said(address, [bytes_]).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_who_would_rather_speak_http_2_is_answered_in_http_1(address: tuple[str, int]) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    assert said(address, [POST + upgrade + LENGTH + b"\r\n" + BODY]).startswith(b"HTTP/1.1 200 OK\r\n")


def test_requests_that_are_sent_together_are_answered_in_order(address: tuple[str, int]) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(address, timeout=20) as caller:
        caller.sendall(POST + LENGTH + b"\r\n" + BODY + health + last)
        got = b"".join(iter(lambda: caller.recv(65536), b""))
    lines = [line for line in got.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert [line[line.index(b"HTTP/1.1 ") + 9 :][:3] for line in lines] == [b"200", b"200", b"404"]
    assert b'"status":"ok"' in got.replace(b" ", b"")

"""A client of HTTP/1.1 for answers that are streamed: a POST, its answer piece by piece, connections that are kept.

    free connections --the newest--> request --> head --> pieces ... --> back to the free ones, or closed

It takes little of the CPUs that it shares with a server that is measured. Knows nothing about what is asked.
Source: RFC 9112 (how messages are framed).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from coterie.core.errors import UsageError

READ_BYTES = 1 << 16
CUT, STRANGE = "connection cut", "no HTTP"


class BrokenError(Exception):
    """No whole answer came; the text says in two words what did."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is. `path` comes before each request's own; `headers` are sent with each."""

    host: str
    port: int
    secure: bool = False
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address, without what follows a path."""
        return f"http{'s' if self.secure else ''}://{self._name}:{self.port}{self.path}"

    def head(self, path: str, size_bytes: int) -> bytes:
        """The head of a POST of so many bytes of JSON."""
        own = {"Host": f"{self._name}:{self.port}", "Content-Type": "application/json", "Content-Length": size_bytes}
        lines = [f"{name}: {value}" for name, value in {**own, **self.headers}.items()]
        return "\r\n".join([f"POST {self.path}{path} HTTP/1.1", *lines, "", ""]).encode()

    @property
    def _name(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def origin_of(url: str, headers: Mapping[str, str]) -> Origin:
    """Where an address leads, with or without the /v1 that clients of OpenAI's give. Raises UsageError for none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not url.startswith(("http://", "https://")) or not url.isascii() or not url.isprintable():
        raise UsageError("--url", f"{url!r} is no address of a server", "give one like http://127.0.0.1:8000")
    secure = url.startswith("https")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Origin(host, port or (443 if secure else 80), secure, path, headers)


@dataclass(slots=True)
class _Link:
    """One connection; `fresh`: nothing was asked on it yet."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    fresh: bool = True


class Client:
    """Connections to one server, of which those that are free are used again."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._free: list[_Link] = []
        self._ssl = ssl.create_default_context() if origin.secure else None

    async def post(self, path: str, body: bytes, take: Callable[[bytes], None]) -> int:
        """Ask, let `take` have each piece of the answer's body as it comes, and return the status.

        Raises BrokenError where there is no server, no HTTP, or an answer that ends before its end.
        """
        request = self._origin.head(path, len(body)) + body
        while True:
            link = self._free.pop() if self._free else await self._connect()
            try:
                head = await _asked(link, request)
            except BrokenError:
                link.writer.close()
                if link.fresh:
                    raise
                continue  # a server may close a connection that nobody used
            except BaseException:
                link.writer.close()
                raise
            return await self._answered(link, head, take)

    def close(self) -> None:
        """Close what is free."""
        for link in self._free:
            link.writer.close()
        self._free.clear()

    async def _connect(self) -> _Link:
        try:
            return _Link(*await asyncio.open_connection(self._origin.host, self._origin.port, ssl=self._ssl))
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            raise BrokenError("connection refused" if refused else "no connection") from error

    async def _answered(self, link: _Link, head: bytes, take: Callable[[bytes], None]) -> int:
        kept = False
        try:
            status, fields = _read_head(head)
            kept = await _body(link.reader, fields, take) and fields.get("connection", "").lower() != "close"
        except OSError as error:
            raise BrokenError(CUT) from error
        finally:
            if kept:
                link.fresh = False
                self._free.append(link)
            else:
                link.writer.close()
        return status


async def _asked(link: _Link, request: bytes) -> bytes:
    """Send, and wait for the head of the answer."""
    try:
        link.writer.write(request)
        return await link.reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError) as error:
        raise BrokenError(CUT) from error
    except asyncio.LimitOverrunError as error:
        raise BrokenError(STRANGE) from error


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdecimal():
        raise BrokenError(STRANGE)
    pairs = (line.partition(":") for line in lines if line)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, fields: Mapping[str, str], take: Callable[[bytes], None]) -> bool:
    """Read a body to its end. False where that is the end of the connection, too."""
    if fields.get("transfer-encoding", "").lower() == "chunked":
        chunks = Chunks()
        while not chunks.ended:
            if data := chunks.feed(await _some(reader)):
                take(data)
        return True
    length = fields.get("content-length")
    if length is None:
        while data := await reader.read(READ_BYTES):
            take(data)
        return False
    if not length.isdecimal():
        raise BrokenError(STRANGE)
    left = int(length)
    while left:
        data = await _some(reader, min(left, READ_BYTES))
        left -= len(data)
        take(data)
    return True


async def _some(reader: asyncio.StreamReader, most: int = READ_BYTES) -> bytes:
    data = await reader.read(most)
    if not data:
        raise BrokenError(CUT)
    return data


class Chunks:
    """The data of a chunked body, out of bytes that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._need = 0  # bytes of the chunk under way, its two last ones (a line's end) included
        self._last = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """More bytes; the data in them. Raises BrokenError for what is no chunk."""
        data, at, found = self._rest + data, 0, list[bytes]()
        while at < len(data) and not self.ended:
            if self._need:
                part = data[at : at + self._need]
                found.append(part[: max(self._need - 2, 0)])
                self._need -= len(part)
                at += len(part)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            self._line(data[at:end])
            at = end + 2
        self._rest = data[at:]
        return b"".join(found)

    def _line(self, line: bytes) -> None:
        """A chunk's size; behind the last one, fields until an empty line."""
        if self._last:
            self.ended = not line
            return
        size = 0
        with suppress(ValueError):
            size = int(line.partition(b";")[0], 16)
            self._last = size == 0
        if size < 0 or (size == 0 and not self._last):
            raise BrokenError(STRANGE)
        self._need = size + 2 if size else 0

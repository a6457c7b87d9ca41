"""An HTTP/1.1 client for streamed answers: POST, the body piece by piece, keep-alive connections.

    free connections --the newest--> request --> head --> pieces ... --> back to the free ones, or closed

It uses little CPU time, since it shares CPUs with the server that is measured.
Knows nothing about what is asked.
Source: RFC 9112 (message framing).
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
    """There was no complete answer; the text says why, in two words."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A server's address. `path` is prefixed to each request's path; `headers` are sent with each request."""

    host: str
    port: int
    secure: bool = False
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address, without query or fragment."""
        return f"http{'s' if self.secure else ''}://{self._name}:{self.port}{self.path}"

    def head(self, path: str, size_bytes: int) -> bytes:
        """The head of a POST with a JSON body of this size."""
        own = {"Host": f"{self._name}:{self.port}", "Content-Type": "application/json", "Content-Length": size_bytes}
        lines = [f"{name}: {value}" for name, value in {**own, **self.headers}.items()]
        return "\r\n".join([f"POST {self.path}{path} HTTP/1.1", *lines, "", ""]).encode()

    @property
    def _name(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def origin_of(url: str, headers: Mapping[str, str]) -> Origin:
    """Parse a server's URL; a trailing /v1, as OpenAI clients use it, is dropped. Raises UsageError."""
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
    """One connection; `fresh`: it has not been used yet."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    fresh: bool = True


class Client:
    """A client of one server, with a pool of keep-alive connections."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._free: list[_Link] = []
        self._ssl = ssl.create_default_context() if origin.secure else None

    async def post(self, path: str, body: bytes, take: Callable[[bytes], None]) -> int:
        """Send a request, pass each piece of the answer's body to `take` as it comes, and return the status.

        Raises BrokenError if there is no server, no HTTP, or an incomplete answer.
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
                continue  # a server may close an idle connection: try another
            except BaseException:
                link.writer.close()
                raise
            return await self._answered(link, head, take)

    def close(self) -> None:
        """Close the free connections."""
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
    """Send the request and wait for the head of the answer."""
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
    """Read a body to its end. False if the end of the connection marks it."""
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
    """An incremental decoder of chunked bodies."""

    def __init__(self) -> None:
        self._rest = b""
        self._need = 0  # bytes left of the current chunk, its CRLF included
        self._last = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Take more bytes and return the data in them. Raises BrokenError for invalid chunks."""
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
        """Parse a chunk's size, or after the last chunk the trailer, up to an empty line."""
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

"""Reads the small JSON files of a checkpoint folder, with errors that name the file.

Knows nothing about what is in them.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from coterie.core.errors import CheckpointError
from coterie.core.units import format_bytes

_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_BYTES = 128 << 20  # released tokenizers have up to 35 MB, configs and indices up to 10


def open_file(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Raises CheckpointError if it is missing, unreadable, larger than `max_bytes`, or not a regular file: a pipe could
    block forever, and a device has no end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CheckpointError(str(path), "the file does not exist", "add it or point to another folder") from None
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read: {error.strerror}", "check the file") from None
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(str(path), "is a folder, where a file is expected", "check the folder")
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(str(path), "is a pipe or a device, where a file is expected", "put a file there")
    if max_bytes is not None and status.st_size > max_bytes:
        os.close(descriptor)
        fact = f"has {format_bytes(status.st_size)}, and such a file has at most {format_bytes(max_bytes)}"
        raise CheckpointError(str(path), fact, "download the file again")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """The contents of a small file. Raises CheckpointError if it is missing, unreadable, too large or not a file."""
    with open_file(path, MAX_BYTES) as file:
        try:
            data = file.read()
        except OSError as error:
            raise CheckpointError(str(path), f"cannot be read: {error.strerror}", "check the file") from None
    refuse_pointer(data, str(path))
    return data


def refuse_pointer(begin: bytes, where: str) -> None:
    """Raise CheckpointError for a Git LFS pointer, which stands for a large file that a clone has not fetched.

    `begin`: at least the first eight bytes. Source: Git LFS's specification, "The Pointer".
    """
    if len(begin) >= 8 and begin[: len(_POINTER)] == _POINTER[: len(begin)]:
        raise CheckpointError(where, "is a pointer of Git LFS, not the file itself", "fetch it: git lfs pull")


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file. Raises CheckpointError as `read_bytes` does, and if it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(str(path), f"not UTF-8 text at byte {error.start}", "download the file again") from None


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key appears twice. Raises CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(where, f"{twice!r} appears twice", "save the checkpoint again")
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise CheckpointError(where, f"not UTF-8 text at byte {error.start}", "download the file again") from None
    except json.JSONDecodeError as error:
        fact = f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})"
        raise CheckpointError(where, fact, "download the file again") from None
    except RecursionError:
        raise CheckpointError(where, "JSON nested too deeply", "download the file again") from None
    except ValueError:
        raise CheckpointError(where, "holds a number of thousands of digits", "download the file again") from None
    if not isinstance(parsed, dict):
        fact = f"holds a JSON {type(parsed).__name__} where an object is expected"
        raise CheckpointError(where, fact, "download the file again")
    return parsed


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    return parse_object(read_text(path), str(path))


def read_object_if_present(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one if there is no such file. Raises CheckpointError."""
    return read_object(path) if path.exists() else {}

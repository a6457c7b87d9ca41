"""Vectors of a router's examples, cached on disk between starts: $XDG_CACHE_HOME/coterie/vectors.

    <digest of weights, graph, pooling and device>.vectors     | sha256 of the rest | npz: keys [N, 16], rows [N, D] |

A key is the digest of a text's tokens, so another tokenizer or prompt finds nothing. Files are replaced atomically, and
a damaged one is ignored. Knows nothing about engines.
Source of the folder: the XDG Base Directory Specification, $XDG_CACHE_HOME.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np

from coterie.checkpoint.sentence import Embedding
from coterie.models.fingerprint import fingerprint
from coterie.models.model import Model

Row: TypeAlias = tuple[float, ...]
MAX_FILES, MAX_ROWS = 32, 20_000  # per folder, and per file: the oldest files and least recently used rows go
_KEY_BYTES, _DIGEST_BYTES = 16, 32


def cache_folder() -> Path:
    """The cache's folder; for a user without a home directory, a path where nothing can exist."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "coterie" / "vectors"
    except RuntimeError:  # raised by pathlib for a user id without an account, as in a container
        return Path(os.devnull) / "coterie"


class VectorCache:
    """The rows of one model, as it pools on one device. What cannot be read or written is recomputed: no error."""

    def __init__(self, model: Model, embedding: Embedding, device: str, folder: Path) -> None:
        """Raises CheckpointError for weights that cannot be read."""
        key = f"1 {fingerprint(model)} {model.key} {embedding.pooling} {device}"
        self._path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.vectors"

    @staticmethod
    def key_of(ids: Sequence[int]) -> bytes:
        """The key of the vector of these tokens."""
        return hashlib.sha256(np.array(ids, np.int64).tobytes()).digest()[:_KEY_BYTES]

    def read(self) -> dict[bytes, Row]:
        """All cached rows by key, most recently used last; empty if there is no intact file."""
        try:
            data = self._path.read_bytes()
            if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
                return {}
            with np.load(io.BytesIO(data[_DIGEST_BYTES:]), allow_pickle=False) as found:
                keys, rows = found["keys"], found["rows"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return {}
        return {key.tobytes(): tuple(row.tolist()) for key, row in zip(keys, rows, strict=True)}

    def write(self, used: Mapping[bytes, Row], others: Mapping[bytes, Row]) -> None:
        """Store these, and as many of `others` as there is room for."""
        rows = {key: row for key, row in others.items() if key not in used} | dict(used)
        rows = dict(list(rows.items())[-MAX_ROWS:])
        data = io.BytesIO()
        keys = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, _KEY_BYTES)
        np.savez(data, keys=keys, rows=np.array(list(rows.values()), np.float32))
        whole = hashlib.sha256(data.getvalue()).digest() + data.getvalue()
        with suppress(OSError):  # the folder is full or not writable: they are recomputed at each start
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _put(self._path, whole)
            newest = sorted(self._path.parent.glob("*.vectors"), key=lambda file: file.stat().st_mtime, reverse=True)
            for old in newest[MAX_FILES:]:
                old.unlink(missing_ok=True)


def _put(path: Path, data: bytes) -> None:
    """Replace a file atomically. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

"""Keys of a server, as it keeps them and as a client shows them.

Knows nothing about requests: who only asks a server needs none of what serves. Source: RFC 6750 (bearer tokens).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from coterie.core.errors import UsageError


def digests_of(keys: Sequence[str]) -> list[bytes]:
    """What is kept of keys. Raises UsageError for one that no header can carry."""
    for key in keys:
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise UsageError("--api-key", "a key is empty, or has spaces or accents", "give plain letters and digits")
    # Digests are of one length, so that how long a comparison takes says nothing about a key, its length included.
    return [digest_of(key.encode()) for key in keys]


def bearer(api_key: str | None) -> dict[str, str]:
    """The header by which a client shows its key, none without one. Raises UsageError for what no header carries."""
    keys = (api_key or "").split()
    digests_of(keys)
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


def digest_of(token: bytes) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(token).digest()

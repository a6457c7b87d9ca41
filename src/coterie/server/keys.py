"""A server's API keys, as it stores them and as a client sends them.

Knows nothing about requests, so that a client need not import the server. Source: RFC 6750 (bearer tokens).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from coterie.core.errors import UsageError


def digests_of(keys: Sequence[str]) -> list[bytes]:
    """The stored form of keys. Raises UsageError for one that no header can carry."""
    for key in keys:
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise UsageError("--api-key", "a key is empty, or has spaces or accents", "give plain letters and digits")
    # Digests have equal lengths, so the time of a comparison reveals nothing about a key, not even its length.
    return [digest_of(key.encode()) for key in keys]


def bearer(api_key: str | None) -> dict[str, str]:
    """The header that carries a client's key; empty without one. Raises UsageError for one that no header can carry."""
    keys = (api_key or "").split()
    digests_of(keys)
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


def digest_of(token: bytes) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(token).digest()

"""Who can be asked at a server: what its GET /v1/models names.

Knows nothing about requests.
"""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from coterie.bench.http_stream import Origin
from coterie.core.errors import UsageError

TIMEOUT_S = 10.0
_BY_HAND = "say with --url where one is, or name who is asked with --model"


def models_at(origin: Origin) -> list[str]:
    """The models of a server; of ours its experts, for their names bypass the router. Raises UsageError."""
    try:
        with urlopen(Request(f"{origin.url}/v1/models", headers=dict(origin.headers)), timeout=TIMEOUT_S) as answer:
            body = json.load(answer)
    except HTTPError as error:
        remedy = "give --api-key" if error.code == 401 else _BY_HAND
        raise UsageError(origin.url, f"GET /v1/models is answered with {error.code} {error.reason}", remedy) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(
            origin.url, f"no server answers: {reason}", "start one, or say with --url where it is"
        ) from error
    except ValueError as error:
        raise UsageError(origin.url, "GET /v1/models is answered with what is no JSON", _BY_HAND) from error
    rows = body.get("data") if isinstance(body, dict) else None
    found = [row for row in rows if isinstance(row, dict) and row.get("id")] if isinstance(rows, list) else []
    if not found:
        raise UsageError(origin.url, "GET /v1/models names no models", _BY_HAND)
    experts = [row for row in found if _kind(row) == "expert"]
    return [str(row["id"]) for row in experts or found]


def _kind(row: dict[str, Any]) -> str:
    about = row.get("coterie")
    return str(about.get("kind")) if isinstance(about, dict) else ""

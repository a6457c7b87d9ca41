"""Ollama's model names, where `foo` and `foo:latest` are the same, its times and durations, and its errors.

Knows nothing about requests. Source: Ollama's API reference, "Model names", and the Go library, time.ParseDuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from coterie.composition.composition import Composition
from coterie.core.errors import CoterieError, NotFoundError, RequestError, shown
from coterie.server import fields

API = "/api/"
LATEST = ":latest"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIECE = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"
_DURATION = re.compile(rf"([+-]?)((?:{_PIECE})+)")
_OWN = {
    "response_format": "format",
    "max_tokens": "options.num_predict",
    "num_predict": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    **{name: f"options.{name}" for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")},
    **{name: f"options.{name}" for name in ("repeat_last_n", "presence_penalty", "frequency_penalty")},
}
_OWN_PARTS = {"response_format.json_schema.": "format."}


def own_name(name: str, composition: Composition) -> str:
    """The composition's name for a model: `name`, or else that with or without `:latest`; `name` if none exists."""

    def is_there(one: str) -> bool:
        return one == composition.name or composition.named(one) is not None

    others = (name.removesuffix(LATEST), name + LATEST)
    return next((one for one in (name, *others) if is_there(one)), name)


def listed(name: str) -> str:
    """A name as Ollama lists it, always with a tag: clients look for `foo:latest` if their user said `foo`."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def expert_of(name: str, composition: Composition) -> str | None:
    """The expert meant by a resolved name; None if a router chooses. Raises NotFoundError."""
    if name != composition.name or composition.named(name) is not None:
        return composition.expert(name).name
    return composition.names[0] if len(composition.names) == 1 else None


def named(body: Mapping[str, object], composition: Composition, older: str = "") -> str:
    """The model a body names, resolved; `older`: an alternative field for it. Raises RequestError."""
    given = body.get("model")
    model = fields.model({"model": body.get(older) if older and given is None else given})
    return own_name(model, composition)


def keep_alive(body: Mapping[str, object]) -> float | None:
    """How long to keep a model after the answer, in seconds; negative: for ever, None: default. Raises RequestError."""
    given = body.get("keep_alive")
    if given is None:
        return None
    if isinstance(given, str):
        sign, pieces = (match[1], match[2]) if (match := _DURATION.fullmatch(given)) else ("", "")
        if pieces:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PIECE, pieces))
            return -seconds if sign == "-" else seconds
        try:
            return fields.float_of({"keep_alive": float(given)}, "keep_alive")
        except ValueError:
            pass
    elif isinstance(given, int | float) and not isinstance(given, bool):
        return fields.float_of(body, "keep_alive")
    raise RequestError("keep_alive", f"is {shown(given)}", 'give seconds, or a time as in "5m"; 0 unloads')


def timestamp(seconds: float) -> str:
    """A moment, in seconds since 1970, as RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def ollama_words(error: CoterieError) -> CoterieError:
    """Translates an error from chat's field names to these endpoints'."""
    return fields.translate_error(error, _OWN, _OWN_PARTS)


def ollama_error(message: str) -> dict[str, Any]:
    """The error object of these endpoints."""
    return {"error": message}


def not_served(name: str, composition: Composition) -> NotFoundError:
    """The error for a model to be pulled that is not served: nothing is downloaded here."""
    remedy = "put its folder beside the others (GGUF files by coterie import), then POST /v1/models/rescan"
    return NotFoundError(composition.name, f"has no model {shown(name)}, and this server downloads none", remedy)

"""What a server writes to stderr, one line each: failures, changes, and optionally each finished answer.

No prompt or answer is logged, except what an error quotes. Knows nothing about who reads it.
"""

from __future__ import annotations

import logging

from coterie.api import Chunk
from coterie.core.errors import ClosedError, CoterieError, DeviceError, one_line
from coterie.core.units import format_seconds

LOG = logging.getLogger("coterie.server")
ANSWERS = logging.getLogger("coterie.answers")


def open_log(answers: bool) -> None:
    """Configure timestamped lines; `answers`: also log each answer and each refusal. Call once per serving process."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    LOG.setLevel(logging.INFO)
    ANSWERS.setLevel(logging.INFO if answers else logging.WARNING)


def log_end(chunk: Chunk) -> None:
    """Log the last chunk of an answer: a device failure always; otherwise, if answers are logged, its figures."""
    name = f"chatcmpl-{chunk.request_id}"
    if isinstance(chunk.error, DeviceError):
        LOG.error("%s of %s: %s", name, chunk.expert or "no expert yet", chunk.error)
    elif chunk.answer is not None and ANSWERS.isEnabledFor(logging.INFO):
        one = chunk.answer
        how = "fallback" if one.route.is_fallback else f"confidence {one.route.confidence:.2f}"
        tokens = f"{one.prompt_tokens} ({one.cached_tokens} cached) + {len(one.token_ids)} tokens"
        took = f"first token {format_seconds(one.ttft_s)}, all {format_seconds(one.total_s)}"
        switch = "" if one.hit else f", switch {format_seconds(one.switch_s)}"
        ANSWERS.info("%s of %s (%s): %s, %s, %s%s", name, one.expert, how, one.finish_reason, tokens, took, switch)


def log_refusal(asked: str, status: int, error: CoterieError) -> None:
    """Log an error response: server errors (a lack of memory, say) always; client errors if answers are logged.

    A device's failure is logged when its answer ends, and a shutdown by the server itself.
    """
    if isinstance(error, DeviceError | ClosedError):
        return
    if status >= 500:
        LOG.error("%s %d: %s", one_line(asked), status, error)
    else:
        ANSWERS.info("%s %d: %s", one_line(asked), status, error)


def log_avoided(device: str, error: CoterieError | None) -> None:
    """Log that one of several devices is avoided from now on, with the reason, or no longer is.

    Its failed attempts at requests that other devices then answered are logged nowhere else.
    """
    if error is None:
        LOG.info("the device %s answers again", device)
    else:
        LOG.error("the device %s is avoided: %s", device, error)


def log_repinned(expert: str, device: str, error: CoterieError | None) -> None:
    """Log where an expert is pinned now that a stopped device had pinned, or why nowhere."""
    if error is None:
        LOG.info("%s was pinned on a device that has stopped, and is pinned on %s now", expert, device)
    else:
        LOG.error("a pin is lost: %s", error)

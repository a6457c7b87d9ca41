"""What a server writes to stderr, a line each: what failed, what changed, and, if it is to, each answer that ended.

Nothing that was asked or answered is in it, but for what an error quotes. Knows nothing about who reads it.
"""

from __future__ import annotations

import logging

from coterie.api import Chunk
from coterie.core.errors import ClosedError, CoterieError, DeviceError, one_line
from coterie.core.units import format_seconds

LOG = logging.getLogger("coterie.server")
ANSWERS = logging.getLogger("coterie.answers")


def open_log(answers: bool) -> None:
    """Write lines with the time; `answers`: of each answer and each refusal too. Once, for a process that serves."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    LOG.setLevel(logging.INFO)
    ANSWERS.setLevel(logging.INFO if answers else logging.WARNING)


def log_end(chunk: Chunk) -> None:
    """The last chunk of an answer: that a device failed, always; else, if answers are logged, what it took."""
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
    """What was answered with an error: for want of memory, say, always; by a wrong request, if answers are logged.

    A device's failure is told of where the answer ended, and that a server ends, by who ends it.
    """
    if isinstance(error, DeviceError | ClosedError):
        return
    if status >= 500:
        LOG.error("%s %d: %s", one_line(asked), status, error)
    else:
        ANSWERS.info("%s %d: %s", one_line(asked), status, error)


def log_avoided(device: str, error: CoterieError | None) -> None:
    """One of several devices is asked last from now on, and why, or no more. What it fails and others answer is in no
    other line.
    """
    if error is None:
        LOG.info("the device %s answers again", device)
    else:
        LOG.error("the device %s is avoided: %s", device, error)


def log_repinned(expert: str, device: str, error: CoterieError | None) -> None:
    """A device that has stopped had an expert pinned: on which it is pinned now, or why on none."""
    if error is None:
        LOG.info("%s was pinned on a device that has stopped, and is pinned on %s now", expert, device)
    else:
        LOG.error("a pin is lost: %s", error)

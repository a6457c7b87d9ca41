"""The error tree: every failure that a user can cause is one of these, and prints as one sentence.

    CoterieError                 [where] fact with numbers; what to change
    |-- UsageError               a value given by the user is wrong (exit 2, HTTP 400)
    |   |-- CompositionError     the composition file or folder
    |   |-- CheckpointError      config.json, tokenizer.json, safetensors
    |   |-- UnsupportedError     valid, but a feature that Coterie does not support
    |   `-- RequestError         a prompt or a sampling value
    |       |-- ContextError     a prompt that is longer than its expert's context
    |       `-- ForgottenError   an earlier response that is not kept, or no longer
    |-- CapacityError            it does not fit: demand, bound and the levers that would help (HTTP 503)
    |   |-- LargestExpertError   an expert alone is larger than the memory for experts
    |   `-- OversizeError        one request needs more than there is, so that waiting does not help (HTTP 400)
    |-- CrowdedError             so many requests wait that no more are taken (HTTP 429)
    |-- ConflictError            what is pinned or under way forbids it now (HTTP 409)
    |-- NotFoundError            an expert or a file that does not exist (HTTP 404)
    |-- ClosedError              what should answer has been shut down (HTTP 503)
    `-- DeviceError              a device failed while it worked (HTTP 500)
        `-- TransferError        bytes could not be moved: a read failed or the file changed

Knows nothing about who prints them. Our own bugs are ordinary Python exceptions, with tracebacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from reprlib import Repr

from coterie.core.units import format_bytes

MAX_PART = 1000  # maximal characters of each of an error's three parts
_BRIEF = Repr()
_BRIEF.maxlevel = 2
_BRIEF.maxstring = _BRIEF.maxother = 80


def shown(value: object) -> str:
    """A user-supplied value for display in a message, shortened to about a line."""
    return _BRIEF.repr(value)


def install_extra(extra: str) -> str:
    """The remedy for a missing optional extra. Coterie is installed from its sources, not by name from an index."""
    return f"install the extra {extra}, in the folder of Coterie's source: pip install -e '.[{extra}]'"


def one_line(text: str) -> str:
    """Make untrusted text safe for a message: a single line of bounded length.

    Characters that are not printable (line ends, terminal escapes, bidirectional marks, lone surrogates) are shown as
    Python escapes.
    """
    if len(text) > MAX_PART:
        half = MAX_PART // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join([letter if letter.isprintable() else repr(letter)[1:-1] for letter in text])


class CoterieError(Exception):
    """One sentence: `[where] fact; remedy`.

    `where` names the file, key, expert or option; `fact` says what is wrong, with numbers; `remedy` what to change.
    Each may quote untrusted text, and is passed through `one_line`.
    """

    def __init__(self, where: str, fact: str, remedy: str = "") -> None:
        self.where, self.fact, self.remedy = one_line(where), one_line(fact), one_line(remedy)
        super().__init__(f"[{self.where}] {self.fact}" + (f"; {self.remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Support copy and pickle: restore from the message, since subclasses take other arguments."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[CoterieError], args: tuple[object, ...]) -> CoterieError:
    return kind.__new__(kind, *args)


def fresh(error: CoterieError) -> CoterieError:
    """A copy without traceback. Raising a stored error repeatedly would keep the frames of each raise alive."""
    return copy(error)


class UsageError(CoterieError):
    """A value that the user gave is wrong."""


class CompositionError(UsageError):
    """The composition file or folder is wrong."""


class CheckpointError(UsageError):
    """A checkpoint's files are missing, damaged or disagree."""


class UnsupportedError(UsageError):
    """A valid checkpoint or option that uses a feature which Coterie does not support."""


class RequestError(UsageError):
    """A prompt or a sampling value is out of range."""


class ContextError(RequestError):
    """A prompt is longer than its expert's context."""


class ForgottenError(RequestError):
    """An earlier response is not kept, or no longer."""


class NotFoundError(CoterieError):
    """A named expert or file does not exist."""


class CapacityError(CoterieError):
    """Something does not fit: `demand_bytes` > `bound_bytes`; `levers`: what the user can change."""

    def __init__(self, where: str, what: str, demand_bytes: int, bound_bytes: int, levers: Sequence[str]) -> None:
        self.demand_bytes, self.bound_bytes, self.levers = demand_bytes, bound_bytes, tuple(levers)
        fact = f"{what} needs {format_bytes(demand_bytes)} but {format_bytes(bound_bytes)} can be had"
        super().__init__(where, fact, " or ".join(self.levers))


class OversizeError(CapacityError):
    """A single request needs more than the total capacity: waiting would not help."""


class LargestExpertError(CapacityError):
    """The largest of the experts does not fit in the memory for experts, even by itself."""

    def __init__(self, where: str, expert: str, beside: str, demand_bytes: int, bound_bytes: int, lever: str) -> None:
        self.expert = expert
        levers = (lever, f"leave {expert} out, or use a smaller expert")
        super().__init__(where, f"the expert {expert}{beside}", demand_bytes, bound_bytes, levers)


class CrowdedError(CoterieError):
    """The queue is full: `waiting` requests wait, `own` of them by this client, and `most` may."""

    def __init__(self, where: str, waiting: int, most: int, own: int = 0) -> None:
        self.waiting, self.most, self.own = waiting, most, own
        fact = f"{waiting} requests wait, {own} of them yours, and {most} may, of which others keep their part"
        super().__init__(where, fact, "ask again later, or serve with a larger --max-waiting")


class ConflictError(CoterieError):
    """The operation conflicts with pinned experts or with work in progress."""


class ClosedError(CoterieError):
    """The engine or server has been shut down, or is about to be."""


class DeviceError(CoterieError):
    """A device failed while it worked."""


class TransferError(DeviceError):
    """Bytes could not be moved between two tiers."""


def check_unicode(text: str, where: str) -> None:
    """Raise RequestError, with the position, for text that is not valid Unicode (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        fact = f"character {error.start} is U+{ord(text[error.start]):04X}, which is no character by itself"
        raise RequestError(where, fact, "send valid Unicode text") from error

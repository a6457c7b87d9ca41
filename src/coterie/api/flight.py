"""Flight: an unfinished query of a fleet, and what its board knows about it.

Knows nothing about how it is placed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from coterie.api.member import Member
from coterie.api.ready import Ready
from coterie.core.errors import DeviceError


@dataclass(slots=True)
class Failure:
    """A step that failed queries of a member; `counted`: held against the member, once for however many queries."""

    member: Member
    error: DeviceError
    counted: bool = False


@dataclass(slots=True)
class Flight:
    """An unfinished query: its member, its expert, and when it was asked, on that member's clock.

    `ready`: as asked; `able`: the members that could answer it then, None: any. `begun`: it has a chunk. `retried`: it
    was retried after its first member broke or failed it. `blamed`: that failure, to be counted if another member
    answers.
    """

    member: Member
    expert: str
    ready: Ready
    able: Collection[Member] | None = None
    asked_s: float = 0.0
    begun: bool = False
    cancelled: bool = False
    retried: bool = False
    blamed: Failure | None = None

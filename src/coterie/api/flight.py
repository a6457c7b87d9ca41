"""Flight: a query that a fleet has not ended, and what its board knows of it.

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
    """A step that failed one or more queries of a member; `counted` against it: once, however many these are."""

    member: Member
    error: DeviceError
    counted: bool = False


@dataclass(slots=True)
class Flight:
    """A query that has not ended: with whom it is, of which expert, since when by that one's clock.

    `ready`: as it was asked; `able`: who could answer it then, None: anybody. `begun`: it has a chunk. `again`: the
    first that had it has broken, or failed it. `blamed`: that failure, should another one answer it.
    """

    member: Member
    expert: str
    ready: Ready
    able: Collection[Member] | None = None
    asked_s: float = 0.0
    begun: bool = False
    cancelled: bool = False
    again: bool = False
    blamed: Failure | None = None

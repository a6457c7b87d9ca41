"""Work on a modelled lane: phases, each a delay and flows that drain together; merged phases; where a work is.

Knows nothing about lanes, resources' capacities or the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Flow:
    """An amount that drains at one rate. `uses` says how much of each resource one unit of it takes."""

    amount: float
    uses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of a work: await `gate` where there is one, then the delay, then drain every flow.

    `alone_s` only saves work: how long draining takes when nothing else is active. Give it where each flow uses one
    resource and no two the same. `parts` are what a merged phase is made of; it has no delay and no flows of its own.
    """

    delay_s: float = 0.0
    flows: tuple[Flow, ...] = ()
    gate: Work | None = None
    alone_s: float | None = None
    parts: tuple[Phase, ...] = ()
    drawn: tuple[tuple[str, float], ...] = ()


def merged(parts: Sequence[Phase], gate: Work | None = None) -> Phase:
    """Phases as one, that awaits `gate` first. Parts have no gates and each knows `alone_s`; ValueError otherwise."""
    total_s = 0.0
    drawn: dict[str, float] = {}
    for part in parts:
        if part.gate is not None or part.alone_s is None or part.parts:
            raise ValueError("only plain phases without gates, which know how long they take alone, can be merged")
        total_s += part.delay_s + part.alone_s
        for flow in part.flows:
            for resource, share in flow.uses.items():
                drawn[resource] = drawn.get(resource, 0.0) + share * flow.amount
    return Phase(gate=gate, alone_s=total_s, parts=tuple(parts), drawn=tuple(drawn.items()))


@dataclass(slots=True, eq=False)
class Work:
    """What a lane holds: phases done in order. `failure` is how it ends (None: well); read it when finished.

    `cuts` are the numbers of phases after which it can be cut short; `pieces` is to how many of these pieces it was.
    Once finished it holds no other work, and the clock does not hold it.
    """

    number: int
    after: tuple[Work, ...] = field(repr=False)
    phases: tuple[Phase, ...] = field(repr=False)
    failure: Exception | None
    cuts: tuple[int, ...] = ()
    pieces: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    _entered: bool = False
    _fresh: bool = False
    _index: int = 0
    _part: int = 0
    _delay_s: float = 0.0
    _left: list[float] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """True when it is done or failed."""
        return self.end_s is not None

    @property
    def took_s(self) -> float:
        """From its start to its end; 0 before."""
        return 0.0 if self.start_s is None or self.end_s is None else self.end_s - self.start_s

    def cut_short(self) -> None:
        """End after the piece that it is in; after the first if it has not begun."""
        if self.cuts and not self.finished:
            self.pieces = next(i for i, end in enumerate(self.cuts, 1) if self._index < end or i == len(self.cuts))
            self.phases = self.phases[: self.cuts[self.pieces - 1]]

    def _leaf(self) -> Phase:
        """The plain phase that it is at."""
        phase = self.phases[self._index]
        return phase.parts[self._part] if phase.parts else phase

    def _leave(self) -> None:
        """Go on to the next plain phase, not yet entered."""
        if self._part + 1 < len(self.phases[self._index].parts):
            self._part += 1
        else:
            self._index += 1
            self._part = 0
        self._entered = False

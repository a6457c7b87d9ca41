"""Work on a modelled lane: phases, each a delay and flows that drain together; merged phases; where a work is.

Knows nothing about lanes, resources' capacities or the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coterie.devices.modelled.parts import Table, running


@dataclass(frozen=True, slots=True)
class Flow:
    """An amount that drains at one rate. `uses` says how much of each resource one unit of it takes."""

    amount: float
    uses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of a work: await `gate` where there is one, then the delay, then drain every flow.

    `alone_s` only saves work: how long draining takes when nothing else is active. Give it where each flow uses one
    resource and no two the same. `parts` are what a merged phase is made of; it has no delay and no flows of its own,
    and `drawn` is what it draws of each resource.
    """

    delay_s: float = 0.0
    flows: tuple[Flow, ...] = ()
    gate: Work | None = None
    alone_s: float | None = None
    parts: Parts | None = None
    drawn: tuple[tuple[str, float], ...] = ()

    def delayed(self, seconds: float) -> Phase:
        """The same after so much more delay."""
        return replace(self, delay_s=self.delay_s + seconds)

    def gated(self, gate: Work) -> Phase:
        """The same behind a gate."""
        return replace(self, gate=gate)


class Parts:
    """Plain phases without gates, one after the other: `places` says which of the `unique` ones each is."""

    __slots__ = ("_table", "places", "unique")

    def __init__(self, unique: Sequence[Phase], places: tuple[int, ...]) -> None:
        self.unique, self.places = unique, places
        self._table: Table | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Phase:
        return self.unique[self.places[index]]

    def __iter__(self) -> Iterator[Phase]:
        return (self.unique[place] for place in self.places)

    @property
    def table(self) -> Table:
        """What they draw, part by part."""
        if self._table is None:
            self._table = Table.of(self.unique, self.places)
        return self._table

    def merged(self, begin: int = 0, end: int | None = None, head: Phase | None = None) -> Phase:
        """Those from `begin` to `end` as one phase; `head`, where there is one, stands in the place of the first.

        Raises ValueError unless each part knows `alone_s`.
        """
        places = self.places[begin:end]
        if head is not None:
            return Parts([*self.unique, head], (len(self.unique), *places[1:])).merged()
        if len(places) < len(self):
            return Parts(self.unique, places).merged()
        took_s = []
        drawn: dict[str, list[float]] = {}
        for number, part in enumerate(self.unique):
            if part.gate is not None or part.alone_s is None or part.parts is not None:
                raise ValueError("only plain phases without gates, which know how long they take alone, can be merged")
            took_s.append(part.delay_s + part.alone_s)
            for flow in part.flows:
                for resource, share in flow.uses.items():
                    each = drawn.setdefault(resource, [0.0] * len(self.unique))
                    each[number] += share * flow.amount
        totals = tuple([(name, running(each, self.places)[-1]) for name, each in drawn.items()])
        return Phase(alone_s=running(took_s, self.places)[-1], parts=self, drawn=totals)


def merged(parts: Sequence[Phase]) -> Phase:
    """Phases, at least one, as one. Parts have no gates and each knows `alone_s`; ValueError otherwise."""
    first: dict[int, int] = {}
    unique: list[Phase] = []
    places = []
    for part in parts:
        place = first.setdefault(id(part), len(unique))
        if place == len(unique):
            unique.append(part)
        places.append(place)
    return Parts(unique, tuple(places)).merged()


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
        return phase if phase.parts is None else phase.parts[self._part]

    def _leave(self) -> None:
        """Go on to the next plain phase, not yet entered."""
        parts = self.phases[self._index].parts
        if parts is not None and self._part + 1 < len(parts):
            self._part += 1
        else:
            self._index += 1
            self._part = 0
        self._entered = False

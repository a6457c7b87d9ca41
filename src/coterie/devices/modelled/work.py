"""Work on a modelled lane: phases (a delay, then flows that drain concurrently), merged phases, and a work's progress.

Knows nothing about lanes, resources' capacities or the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coterie.devices.modelled.parts import Table, running


@dataclass(frozen=True, slots=True)
class Flow:
    """An amount that drains at one rate. `uses`: units of each resource that one unit of it takes."""

    amount: float
    uses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of a work: await `gate` if there is one, then the delay, then drain all flows.

    `alone_s` is an optimisation: the draining time when nothing else is active. Set it only if each flow uses a single
    resource and no two the same one. `parts`: what a merged phase consists of; it has no delay or flows of its own, and
    `drawn` is its total use of each resource.
    """

    delay_s: float = 0.0
    flows: tuple[Flow, ...] = ()
    gate: Work | None = None
    alone_s: float | None = None
    parts: Parts | None = None
    drawn: tuple[tuple[str, float], ...] = ()

    def delayed(self, seconds: float) -> Phase:
        """A copy with `seconds` more delay."""
        return replace(self, delay_s=self.delay_s + seconds)

    def gated(self, gate: Work) -> Phase:
        """A copy that awaits a gate."""
        return replace(self, gate=gate)


class Parts:
    """A sequence of plain phases without gates: `places` are indices into `unique`."""

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
        """Prefix sums of what the parts draw; computed once."""
        if self._table is None:
            self._table = Table.of(self.unique, self.places)
        return self._table

    def merged(self, begin: int = 0, end: int | None = None, head: Phase | None = None) -> Phase:
        """Merge parts [begin, end) into one phase; `head`, if given, replaces the first.

        Raises ValueError unless every part has `alone_s`.
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
    """Merge phases, at least one. Raises ValueError unless all are without gates and have `alone_s`."""
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
    """A unit of work on a lane: phases executed in order. `failure`: how it ends (None: success); valid once finished.

    `cuts`: numbers of phases after which it can be cut short; `pieces`: how many pieces it then has, else None.
    Once finished it references no other work, and the clock does not reference it.
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
        """Seconds from start to end; 0 until finished."""
        return 0.0 if self.start_s is None or self.end_s is None else self.end_s - self.start_s

    def cut_short(self) -> None:
        """End after the current piece; after the first if it has not begun."""
        if self.cuts and not self.finished:
            self.pieces = next(i for i, end in enumerate(self.cuts, 1) if self._index < end or i == len(self.cuts))
            self.phases = self.phases[: self.cuts[self.pieces - 1]]

    def _leaf(self) -> Phase:
        """The current plain phase."""
        phase = self.phases[self._index]
        return phase if phase.parts is None else phase.parts[self._part]

    def _leave(self) -> None:
        """Advance to the next plain phase, without entering it."""
        parts = self.phases[self._index].parts
        if parts is not None and self._part + 1 < len(parts):
            self._part += 1
        else:
            self._index += 1
            self._part = 0
        self._entered = False

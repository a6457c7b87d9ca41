"""A program loaded by a modelled device, and what a run of it must fit.

Knows nothing about time or prices, except that prices found are kept here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coterie.core.shapes import Sizes
from coterie.device import Binding, Event, Executable, Rows
from coterie.devices.modelled_time import Phase, Work, merged
from coterie.graph.program import Program


class StepPhases:
    """The phases of a step of given sizes: as one piece, and cut where gates are awaited.

    `begins_s` is what the first region costs more in the first step of a run.
    """

    def __init__(self, regions: tuple[Phase, ...], begins_s: float) -> None:
        self.later = merged(regions)
        head = replace(regions[0], delay_s=regions[0].delay_s + begins_s)
        self._regions = (head, *regions[1:])
        self._whole: Phase | None = None
        self._cut: dict[tuple[int, ...], tuple[Phase, ...]] = {}

    def first(self, waits: Sequence[Work | None]) -> list[Phase]:
        """The first step of a run; `waits` gives each region the work that it must await, or is empty."""
        if not waits:
            if self._whole is None:
                self._whole = merged(self._regions)
            return [self._whole]
        starts = tuple(i for i, gate in enumerate(waits) if gate is not None or i == 0)
        if starts not in self._cut:
            ends = (*starts[1:], len(self._regions))
            self._cut[starts] = tuple(merged(self._regions[a:b]) for a, b in zip(starts, ends, strict=True))
        pieces = self._cut[starts]
        return [
            piece if waits[i] is None else replace(piece, gate=waits[i])
            for i, piece in zip(starts, pieces, strict=True)
        ]


@dataclass(slots=True)
class ModelledExecutable:
    """A program with the prices found so far, and the numerics device's own executable where there is one.

    `same` gives each region the first one that costs the same; prices are by sizes and the tiers of weights and KV.
    """

    program: Program
    numerics: Executable | None
    same: tuple[int, ...]
    prices: dict[tuple[Sizes, str, str], StepPhases] = field(default_factory=dict)
    stages: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.stages = frozenset(region.stage for region in self.program.regions)


def own_executable(exe: Executable, binding: Binding, gates: Mapping[str, Event], steps: int) -> ModelledExecutable:
    """The executable as one of ours. Raises ValueError for another device's, or a run that does not fit it."""
    if not isinstance(exe, ModelledExecutable):
        raise ValueError(f"{type(exe).__name__} was not loaded by this device")
    _check_steps(binding.rows, steps)
    unknown = sorted(set(gates) - exe.stages) if gates else ()
    if unknown:
        raise ValueError(f"gates for stages that {exe.program.graph.name} does not have: {', '.join(unknown)}")
    if len(binding.offsets) != len(exe.program.weights):
        raise ValueError(f"{len(binding.offsets)} offsets for {len(exe.program.weights)} weights")
    return exe


def numerics_of(exe: ModelledExecutable) -> Executable:
    """What the device behind loaded. Raises RuntimeError where there is none."""
    if exe.numerics is None:
        raise RuntimeError(f"{exe.program.graph.name} was loaded without numerics")
    return exe.numerics


def _check_steps(rows: Rows, steps: int) -> None:
    sizes = rows.sizes
    if steps < 1:
        raise ValueError(f"{steps} steps; at least 1 is needed")
    if steps > 1 and not sizes.T == sizes.B == sizes.R:
        raise ValueError(f"{steps} steps with T={sizes.T}, B={sizes.B}, R={sizes.R}; only decoding repeats")

"""A program loaded by a modelled device: its cached prices, the phases of its runs, and the validation of a run.

Knows nothing about how prices are computed or how time passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from coterie.core.shapes import Sizes
from coterie.device import Binding, Executable
from coterie.devices.modelled.fluid import Phase, Work
from coterie.devices.modelled.price import StepPricer, gated
from coterie.devices.modelled.work import Parts
from coterie.graph.mixing import mixes, own_bytes
from coterie.graph.program import Program

MAX_PRICED_STEPS = 4096  # cache entries: priced step sizes; bounds memory, not use


class StepPhases:
    """The phases of a step of given sizes: as a single merged phase, or split at gates.

    `begins_s`: extra cost of the first region in a run's first step. `runs`: a cache of the phases of whole runs that
    start with this step, by number of steps.
    """

    def __init__(self, regions: Parts, begins_s: float) -> None:
        self._regions = regions
        self._head = regions[0].delayed(begins_s)
        self._later: Phase | None = None
        self._whole: Phase | None = None
        self._cut: dict[tuple[int, ...], tuple[Phase, ...]] = {}
        self.runs: dict[int, tuple[list[Phase], tuple[int, ...]]] = {}

    @property
    def later(self) -> Phase:
        """Any step of a run but the first."""
        if self._later is None:
            self._later = self._regions.merged()
        return self._later

    def first(self, waits: Sequence[Work | None]) -> list[Phase]:
        """The first step of a run; `waits`: the gate of each region or None, or empty if there are no gates."""
        if not waits:
            if self._whole is None:
                self._whole = self._regions.merged(head=self._head)
            return [self._whole]
        starts = tuple(i for i, gate in enumerate(waits) if gate is not None or i == 0)
        if starts not in self._cut:
            ends = (*starts[1:], len(self._regions))
            heads = (self._head, *[None] * (len(starts) - 1))
            self._cut[starts] = tuple(map(self._regions.merged, starts, ends, heads))
        found = []
        for i, piece in zip(starts, self._cut[starts], strict=True):
            gate = waits[i]
            found.append(piece if gate is None else piece.gated(gate))
        return found


class Prices:
    """A cache of step prices, by sizes and tiers of weights and KV; `program` is what one unit executes."""

    def __init__(self, pricer: StepPricer) -> None:
        self.program = pricer.program
        self._pricer = pricer
        self._known: dict[tuple[int, int, int, int, int, tuple[str, str], int], StepPhases] = {}

    def of(self, sizes: Sizes, tiers: tuple[str, str], more_bytes: int = 0) -> StepPhases:
        """The phases of a step. `more_bytes`: weights it reads beyond those of a single expert."""
        key = (sizes.T, sizes.B, sizes.R, sizes.context_tokens, sizes.pairs, tiers, more_bytes)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_PRICED_STEPS:
                self._known.clear()
            found = self._known[key] = StepPhases(self._pricer.phases(sizes, tiers, more_bytes), self._pricer.begins_s)
        return found


@dataclass(slots=True)
class ModelledExecutable:
    """A program with its prices, and the numerics device's executable if there is one.

    `gated`: prices of steps whose weights are still arriving; the same object as `prices` unless the spec differs.
    """

    program: Program
    numerics: Executable | None
    prices: Prices
    gated: Prices
    stages: frozenset[str] = frozenset()
    label: str = ""
    vocab_size: int = 0
    num_weights: int = 0
    _own: dict[tuple[int, ...], tuple[bool, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vocab_size, self.num_weights = self.program.vocab_size, len(self.program.weights)
        self.label = f"run {self.program.graph.name}"
        self.stages = frozenset(region.stage for region in self.program.regions)

    def mixes(self, shared: Sequence[int]) -> bool:
        """As the numerics device; without one, whether kernels could exist that do."""
        return self._own_of(tuple(shared))[0]

    def more_bytes(self, binding: Binding) -> int:
        """Bytes of its variants' weights that each step reads. Raises ValueError if they cannot be mixed."""
        variants = binding.variants
        if variants is None:
            return 0
        mixed, size_bytes = self._own_of(() if binding.shared is None else binding.shared.indices)
        if not mixed:
            raise ValueError(f"{self.program.graph.name} does not mix sequences of different weights")
        if {len(variants.weights), *variants.expert_B} - set(range(len(variants.weights) + 1)):
            raise ValueError(f"sequences have the weights {list(variants.expert_B)} of {1 + len(variants.weights)}")
        return size_bytes * len(variants.weights)

    def _own_of(self, shared: tuple[int, ...]) -> tuple[bool, int]:
        """Whether experts that share only these weights can be mixed, and the bytes of all other weights."""
        found = self._own.get(shared)
        if found is None:
            numerics, program = self.numerics, self.program
            mixed = mixes(program, shared) if numerics is None else numerics.mixes(shared)
            found = self._own[shared] = mixed, own_bytes(program, shared)
        return found


def run_phases(
    exe: ModelledExecutable,
    sizes: Sizes,
    tiers: tuple[str, str],
    steps: int,
    gates: Mapping[str, Work],
    more_bytes: int = 0,
) -> tuple[list[Phase], tuple[int, ...]]:
    """The phases of a run, and the number of phases after which each step ends; a step without gates is one phase.

    `sizes`: of the first step; `tiers`: of weights and KV; `more_bytes`: bytes of variants' weights read per step.
    """
    if gates:
        # Gates that are already open are dropped for speed; one that failed must still fail the run.
        awaited = {stage: gate for stage, gate in gates.items() if not gate.finished or gate.failure is not None}
        if awaited:
            begins = exe.gated.of(sizes, tiers, more_bytes).first(gated(exe.gated.program, awaited))
            return _steps(exe, sizes, tiers, steps, begins, more_bytes)
    first = exe.prices.of(sizes, tiers, more_bytes)
    found = first.runs.get(steps)
    if found is None:
        found = first.runs[steps] = _steps(exe, sizes, tiers, steps, first.first(()), more_bytes)
    return found


def _steps(
    exe: ModelledExecutable,
    sizes: Sizes,
    tiers: tuple[str, str],
    steps: int,
    phases: list[Phase],
    more_bytes: int,
) -> tuple[list[Phase], tuple[int, ...]]:
    """Append the phases of the later steps to those of the first; returns them with the ends of all steps."""
    cuts = [len(phases)]
    for step in range(1, steps):
        context_tokens, pairs = sizes.context_tokens + step * sizes.B, sizes.pairs + step * sizes.T
        later = Sizes(sizes.T, sizes.B, sizes.R, context_tokens, pairs)
        phases.append(exe.prices.of(later, tiers, more_bytes).later)
        cuts.append(len(phases))
    return phases, tuple(cuts)


def own_executable(
    exe: Executable, binding: Binding, sizes: Sizes, gates: Collection[str], steps: int
) -> ModelledExecutable:
    """Narrow to our executable type. Raises ValueError for another device's, or arguments that do not fit it."""
    if not isinstance(exe, ModelledExecutable):
        raise ValueError(f"{type(exe).__name__} was not loaded by this device")
    if steps != 1:
        _check_steps(sizes, steps)
    if gates and not exe.stages.issuperset(gates):
        unknown = sorted(set(gates) - exe.stages)
        raise ValueError(f"gates for stages that {exe.program.graph.name} does not have: {', '.join(unknown)}")
    if len(binding.offsets) != exe.num_weights:
        raise ValueError(f"{len(binding.offsets)} offsets for {len(exe.program.weights)} weights")
    return exe


def numerics_of(exe: ModelledExecutable) -> Executable:
    """The numerics device's executable. Raises RuntimeError if there is none."""
    if exe.numerics is None:
        raise RuntimeError(f"{exe.program.graph.name} was loaded without numerics")
    return exe.numerics


def _check_steps(sizes: Sizes, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{steps} steps; at least 1 is needed")
    if steps > 1 and not sizes.T == sizes.B == sizes.R:
        raise ValueError(f"{steps} steps with T={sizes.T}, B={sizes.B}, R={sizes.R}; only decoding repeats")

"""Policy: every number that a scheduling decision depends on.

Knows nothing about how the decisions are made (scheduler.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from coterie.core.errors import UsageError
from coterie.spec.machine import MachineSpec

# Bytes of weights that one run may read, where the run tier is system memory or an accelerator's own: about 40 ms at 25
# GB/s and at 1.6 TB/s. Running step by step instead costs an H100 0.2 ms and the engine 0.3 ms per token.
RUN_BYTES, ACCELERATOR_RUN_BYTES = 2**30, 2**36

# MAX_GUESSES: a CPU kernel multiplies up to 16 tokens by the weights as it reads them. Experts below GUESSED_BYTES fit
# in the caches, where decoding is not bound by memory. CPU_FLOPS_PER_BYTE is the fallback where the spec gives no
# figure: two cores did 2 to 4, depending on weight type.
MAX_GUESSES, GUESSED_BYTES, CPU_FLOPS_PER_BYTE = 15, 2**25, 2.0
FEW_ROWS = 4  # rows of a step for which kernels of packed weights read the weights once


@dataclass(frozen=True, slots=True)
class Balance:
    """Flops in the time of reading one byte of weights: for a step's first FEW_ROWS rows, and for further rows."""

    few: float
    more: float


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of the scheduler.

    schedule: a name in scheduler.SCHEDULES.
    overdue_factor: a request that has waited for more arrivals than this times the requests present goes before all
        others, whatever their weights. The grouped schedule answers more requests per arrival than first come first
        served; with a factor above that gain (about 1.4 with 32 in flight) the slowest first tokens come later than
        under it.
    age_bound: at most this many later requests overtake a waiting one.
    max_batch, max_step_tokens: sequences and tokens of one step.
    turn_steps: steps for which an expert with work keeps its memory after it was loaded.
    quantum_steps: consecutive steps of one resident expert before another resident one with work runs.
    overlap: run other experts during a fetch, and start the new one when its first stage has arrived. Without it the
        engine waits for each wanted expert at once, and no decision depends on how long a fetch takes.
    max_active_experts: experts that share the steps; the work of further ones starts when one of these has none left.
    prefetch: how many experts beyond the next one may be loading, or resident with unstarted work.
    multi_step_while_waiting: run several steps at once even while other requests wait or a fetch is under way, for as
        many steps as would be decided alike; the run ends early when something changes. Modelled time reports changes
        at once; a real device does better without.
    share_steps: let variants of one base (its adapters, or deltas) that have one program share steps.
    max_steps, max_run_bytes: bounds on one device run of several steps when nothing waits: their number, and the bytes
        of weights that they read, so that a large expert's tokens are not shown in bursts. None: RUN_BYTES or
        ACCELERATOR_RUN_BYTES, by the machine.
    max_guesses: tokens of a sequence drafted and verified in one step, where that pays; 0: none. None: MAX_GUESSES, but
        none for small experts, and none on accelerators, where results depend bit by bit on the number of tokens in a
        step.
    flops_per_byte: flops the machine does while it reads a byte, for pricing drafts. None: from its spec.
    """

    schedule: str = "grouped"
    overdue_factor: float = 1.4
    age_bound: int = 512
    max_batch: int = 32
    max_step_tokens: int = 512
    turn_steps: int = 128
    quantum_steps: int = 4
    max_active_experts: int = 6
    overlap: bool = True
    prefetch: int = 1
    multi_step_while_waiting: bool = False
    share_steps: bool = True
    max_steps: int = 8
    max_run_bytes: int | None = None
    max_guesses: int | None = None
    flops_per_byte: float | None = None

    def steps_of(self, expert_bytes: int, spec: MachineSpec) -> int:
        """How many steps of an expert of this size may be one run."""
        max_bytes = self.max_run_bytes or (ACCELERATOR_RUN_BYTES if memories_below(spec) else RUN_BYTES)
        return min(self.max_steps, max(1, max_bytes // max(expert_bytes, 1)))

    def guesses_of(self, expert_bytes: int, spec: MachineSpec) -> int:
        """How many tokens of a sequence may be guessed in one step of an expert of this size."""
        if self.max_guesses is not None:
            return self.max_guesses
        return 0 if memories_below(spec) or expert_bytes < GUESSED_BYTES else MAX_GUESSES

    def constrained_guesses_of(self, spec: MachineSpec) -> int:
        """How many tokens a constrained answer may have guessed in one step from its constraint.

        As many for small experts as for large ones: most of these guesses are certain, and a step's choice of tokens on
        the host costs more than its extra rows.
        """
        return self.guesses_of(GUESSED_BYTES, spec)

    def balance_of(self, spec: MachineSpec, of_kernels: bool = False) -> Balance:
        """Flops per byte: the policy's setting, else from the machine's achieved speeds, else a cautious constant.

        `of_kernels`: prefer the measured figures of kernels on such a machine, where the spec has them, to that
        constant.
        """
        flops_per_s, bytes_per_s = spec.achieved_flops_per_s, spec.tier(spec.run_tier).achieved_bytes_per_s
        found = self.flops_per_byte or (flops_per_s / bytes_per_s if flops_per_s and bytes_per_s else 0.0)
        if found or not (of_kernels and spec.flops_per_byte):
            return Balance(found or CPU_FLOPS_PER_BYTE, found or CPU_FLOPS_PER_BYTE)
        return Balance(spec.few_flops_per_byte, spec.flops_per_byte)

    def __post_init__(self) -> None:
        lowest = {"overdue_factor": 0, "age_bound": 0, "prefetch": 0, "max_guesses": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            low = lowest.get(field.name, 1)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value >= low:
                raise UsageError("policy", f"{field.name} is {value}", f"give {low} or more")
        if self.max_step_tokens <= self.max_batch:
            fact = f"max_step_tokens is {self.max_step_tokens}, not more than max_batch, {self.max_batch}"
            raise UsageError("policy", fact, "raise it, or no prompt could start beside a full batch")


def memories_below(spec: MachineSpec) -> tuple[str, ...]:
    """Tiers between the run tier and the disk; a CPU has none."""
    return tuple(name for name in spec.weight_tiers[1:] if name != "disk")

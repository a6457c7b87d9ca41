"""Policy: every number that a scheduling decision depends on.

Knows nothing about how the decisions are made (scheduler.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from coterie.core.errors import UsageError
from coterie.spec.machine import MachineSpec

# What a run may read, where the run tier is the system's memory and where it is an accelerator's own: some 40 ms of
# 25 GB/s and of 1.6 TB/s. A run that is not several steps costs an H100 0.2 ms and the engine 0.3 ms for each token.
RUN_BYTES, ACCELERATOR_RUN_BYTES = 2**30, 2**36

# Tokens guessed ahead in the system's memory: of up to 16 in a step a CPU uses weights as they are read. Experts below
# GUESSED_BYTES lie in caches, where a step does not wait for bytes. What a CPU computes while it reads a byte, where
# nobody says: two cores did 2 to 4, by the rows of steps of all weight types.
MAX_GUESSES, GUESSED_BYTES, CPU_FLOPS_PER_BYTE = 15, 2**25, 2.0
FEW_ROWS = 4  # of a step: kernels that take so many rows of packed weights at a time have one reading of them for these


@dataclass(frozen=True, slots=True)
class Balance:
    """Flops in the time in which a byte of weights is read: of a step's first FEW_ROWS rows, and of more."""

    few: float
    more: float


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of the scheduler.

    schedule: a name in scheduler.SCHEDULES.
    patience: times the requests that are here, in arrivals, that one waits before age alone decides between experts.
        As requests gather more are answered in the time of an arrival than first come first served: above that gain
        (some 1.4 with 32 in flight) the last first tokens come later than its do.
    age_bound: no waiting request is overtaken by more than this many that came later.
    max_batch, max_step_tokens: sequences and tokens of one step.
    turn_steps: steps for which an expert that has work keeps its memory, once it was brought in.
    quantum_steps: steps in a row that one resident expert runs before another resident one with work.
    overlap: run other experts while one is being fetched, and start it when its first stage is there. Without it each
        wanted expert is waited for at once, and no decision depends on how long a fetch takes.
    turns: experts that share the steps; the work of others is not begun before one of them has none left.
    prefetch: how many experts may be under way, or there with work that is not begun, beside the one wanted next.
    leap: several steps at once also while others wait or something comes up, for as many as would be decided alike; a
        run ends early when something changes. Modelled time tells of that at once; a real device is better without.
    share_steps: variants of one base (its adapters, or deltas) that have one program share steps.
    max_steps, max_run_bytes: steps that a device may take without coming back, when nothing waits; as many as read this
        many bytes of weights, so that a large expert's tokens are not shown in bursts. None: by the machine, RUN_BYTES.
    max_guesses: tokens of a sequence that are drafted and verified in one step, where that is worth its price; 0: none.
        None: none of a small expert, and on an accelerator, whose bits depend on how many a step has.
    flops_per_byte: what the machine computes while it reads a byte, by which drafts are priced. None: by its spec.
    """

    schedule: str = "grouped"
    patience: float = 1.4
    age_bound: int = 512
    max_batch: int = 32
    max_step_tokens: int = 512
    turn_steps: int = 128
    quantum_steps: int = 4
    turns: int = 6
    overlap: bool = True
    prefetch: int = 1
    leap: bool = False
    share_steps: bool = True
    max_steps: int = 8
    max_run_bytes: int | None = None
    max_guesses: int | None = None
    flops_per_byte: float | None = None

    def steps_of(self, expert_bytes: int, spec: MachineSpec) -> int:
        """How many steps of an expert of this size may be one run."""
        most = self.max_run_bytes or (ACCELERATOR_RUN_BYTES if memories_below(spec) else RUN_BYTES)
        return min(self.max_steps, max(1, most // max(expert_bytes, 1)))

    def guesses_of(self, expert_bytes: int, spec: MachineSpec) -> int:
        """How many tokens of a sequence may be guessed ahead in one step of an expert of this size."""
        if self.max_guesses is not None:
            return self.max_guesses
        return 0 if memories_below(spec) or expert_bytes < GUESSED_BYTES else MAX_GUESSES

    def guesses_by_form_of(self, spec: MachineSpec) -> int:
        """How many tokens may be guessed ahead in one step of an answer that has a form, from what that allows.

        Of a small expert as many as of a large one: most are certain, and what the host chooses in a step costs more
        than the step's rows.
        """
        return self.guesses_of(GUESSED_BYTES, spec)

    def balance_of(self, spec: MachineSpec, of_kernels: bool = False) -> Balance:
        """Flops per byte: the policy's, else by the machine's speeds, else a cautious constant.

        `of_kernels`: before that constant, what kernels on such a machine have been seen to do.
        """
        flops_per_s, bytes_per_s = spec.achieved_flops_per_s, spec.tier(spec.run_tier).achieved_bytes_per_s
        found = self.flops_per_byte or (flops_per_s / bytes_per_s if flops_per_s and bytes_per_s else 0.0)
        if found or not (of_kernels and spec.flops_per_byte):
            return Balance(found or CPU_FLOPS_PER_BYTE, found or CPU_FLOPS_PER_BYTE)
        return Balance(spec.few_flops_per_byte, spec.flops_per_byte)

    def __post_init__(self) -> None:
        lowest = {"patience": 0, "age_bound": 0, "prefetch": 0, "max_guesses": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            low = lowest.get(field.name, 1)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value >= low:
                raise UsageError("policy", f"{field.name} is {value}", f"give {low} or more")
        if self.max_step_tokens <= self.max_batch:
            fact = f"max_step_tokens is {self.max_step_tokens}, not more than max_batch, {self.max_batch}"
            raise UsageError("policy", fact, "raise it, or no prompt could start beside a full batch")


def memories_below(spec: MachineSpec) -> tuple[str, ...]:
    """Tiers between the run tier and the files; a CPU has none."""
    return tuple(name for name in spec.weight_tiers[1:] if name != "disk")

"""A benchmark of Figure 10 at some batch: number and work of kernels, unfused and fused, and the resulting speedups.

Knows nothing about published values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from coterie.plan.paper.benchmarks import Benchmark, fits, fused, launches, layer_kernels, unfused, work_s
from coterie.plan.paper.machine import spec
from coterie.spec.machine import MachineSpec

NODE, SOCKET = "sn40l-node", "sn40l-socket"


@dataclass(frozen=True, slots=True)
class Shared:
    """Numbers shared by all benchmarks.

    Seconds of a launch by the host, of a load of a whole grid's program by the host, of both by the hardware.
    `unfused_share`: a factor on the priced work of unfused kernels.
    """

    host_launch_s: float
    host_program_s: float
    device_s: float
    unfused_share: float

    @classmethod
    def of_file(cls, machine: MachineSpec) -> Shared:
        """The values of the machine's file."""
        used = machine.grid.pcu_share if machine.grid else 1.0
        return cls(machine.launch_host_s, used * machine.program_host_s, machine.launch_s("device", used), 1.0)


@dataclass(frozen=True, slots=True)
class Times:
    """A benchmark at one batch: kernels and seconds of work, unfused and fused; `layer`: kernels per section."""

    unfused_kernels: int
    fused_kernels: int
    layer: int
    unfused_work_s: float
    fused_work_s: float

    def speedups(self, shared: Shared) -> dict[str, float]:
        """Speedups over unfused, by mode."""
        small = shared.host_launch_s + shared.host_program_s / self.layer
        unfused_s = self.unfused_work_s * shared.unfused_share + self.unfused_kernels * small
        so = self.fused_work_s + self.fused_kernels * (shared.host_launch_s + shared.host_program_s)
        ho = self.fused_work_s + self.fused_kernels * shared.device_s
        return {"SO": unfused_s / so, "HO": unfused_s / ho}


@cache
def is_possible(benchmark: Benchmark, batch: int) -> bool:
    """Whether its sections fit on the machine at a batch; batch 1 is allowed in any case."""
    machine = spec(NODE if benchmark.is_model else SOCKET)
    return batch == 1 or fits(machine, fused(benchmark), benchmark.sizes(batch))


@cache
def times(benchmark: Benchmark, batch: int) -> Times:
    """Price a benchmark on its machine, at a batch."""
    machine, sizes = spec(NODE if benchmark.is_model else SOCKET), benchmark.sizes(batch)
    many, few = unfused(benchmark), fused(benchmark)
    return Times(
        launches(many),
        launches(few),
        layer_kernels(benchmark),
        work_s(machine, many, sizes),
        work_s(machine, few, sizes),
    )

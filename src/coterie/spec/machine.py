"""MachineSpec: the description of a device that policies may read. Tiers are listed nearest first.

    total, physical     what the fields hold: all units together, as published
    achieved            multiplied by the share that software was observed to reach (`share`, with its own source)
    per unit            divided by `units` (sockets, GPUs), for resources that each unit has for itself

Knows nothing about where the numbers come from (machines/*.toml and this_machine.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory. `bytes_per_s`: physical read bandwidth, 0 if unknown; `share`: the achievable part of it.

    `per_unit`: each unit has its own part (HBM); otherwise all units share it (the host's DRAM).
    """

    name: str
    capacity_bytes: int
    bytes_per_s: float
    source: str
    share: float = 1.0
    share_source: str = ""
    per_unit: bool = False

    @property
    def achieved_bytes_per_s(self) -> float:
        """Bandwidth of streaming kernels."""
        return self.bytes_per_s * self.share


@dataclass(frozen=True, slots=True)
class Link:
    """The connection from tier `src` to tier `dst`. A copy also uses the bandwidth of both tiers."""

    src: str
    dst: str
    bytes_per_s: float
    latency_s: float
    source: str
    share: float = 1.0
    share_source: str = ""

    @property
    def achieved_bytes_per_s(self) -> float:
        """Bandwidth of a copy."""
        return self.bytes_per_s * self.share


@dataclass(frozen=True, slots=True)
class Peers:
    """The interconnect between units: each sends and receives at `bytes_per_s`, with `latency_s` per message.

    `library`: the collectives whose measured times apply (spec/calibration), empty if none were measured.
    """

    bytes_per_s: float
    latency_s: float
    source: str
    share: float = 1.0
    share_source: str = ""
    library: str = ""

    @property
    def achieved_bytes_per_s(self) -> float:
        """Bandwidth from one unit to its neighbour."""
        return self.bytes_per_s * self.share


@dataclass(frozen=True, slots=True)
class SpatialUnits:
    """The grid of one unit of a dataflow machine. `pcu_share`: the share of PCUs that mapped programs typically use.

    Per cycle, a PMU reads `pmu_bytes_per_cycle` and writes as much. Source of this structure: the paper, section IV.
    """

    tiles: int
    pcus: int
    pmus: int
    pmu_bytes: int
    lanes: int
    stages: int
    clock_hz: float
    pmu_bytes_per_cycle: float
    d2d_bytes_per_s: float
    p2p_bytes_per_s: float
    pcu_share: float
    source: str

    @property
    def pcu_flops_per_s(self) -> float:
        """Peak of one PCU: one multiply-add per lane, stage and cycle."""
        return 2.0 * self.lanes * self.stages * self.clock_hz

    @property
    def sram_bytes(self) -> int:
        """On-chip memory of one unit."""
        return self.pmus * self.pmu_bytes


@dataclass(frozen=True, slots=True)
class KernelRates:
    """Time of a kernel: `fixed_s` plus the longer of its flops and its bytes at these shares of the peaks."""

    fixed_s: float
    flops_share: float
    bytes_share: float


@dataclass(frozen=True, slots=True)
class Carried:
    """Kernel efficiencies carried over from other machines to one without kernel measurements, by kernel family.

    `gemm` applies to all products and to element-wise kernels; `gemm_fp8` to products with FP8 weights on machines with
    FP8 arithmetic, relative to its peak. `source`: where they were measured. `own_flops`, `own_bytes`: that share of
    the peak was measured on the machine itself, and the other families were scaled with it.
    """

    gemm: KernelRates
    gemm_fp8: KernelRates
    prefill: KernelRates
    decode: KernelRates
    source: str
    own_flops: bool = False
    own_bytes: bool = False


@dataclass(frozen=True, slots=True)
class Cores:
    """The CPU cores of a machine without GPU: one thread on each of `threads` cores.

    `bytes_per_s`: read bandwidth of a single core. `barrier_s`: cost of the barrier at the end of a region, per thread.
    """

    threads: int
    bytes_per_s: float
    barrier_s: float


@dataclass(frozen=True, slots=True)
class Unpublished:
    """An unpublished number of a machine's file: an assumed value and its plausible range.

    `key`: its name (`launch_device`, `peers.bandwidth`). In base units, for all units of the machine together.
    """

    key: str
    low: float
    value: float
    high: float
    source: str


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A device: peak arithmetic, tiers nearest first, links, launch costs, and its fusion rule set.

    `run_tier`: where programs read weights; `home_tier`: the lowest tier, where every expert is stored.
    Source of the three-tier form: the paper, section IV; launch kinds: section IV-D.

    launch = program load + argument load + execute. `launch_*_s` covers the last two; `program_*_s` is the load of a
    configuration for all units' grids, and proportional for smaller ones.

    Software: between two steps it takes `step_host_s`, plus `step_sequence_s` per sequence. Issuing the kernels of a
    step takes at least `step_floor_s`, and with prefill at least `prompt_floor_s`, overlapped with execution.
    `kernel_share`: speed of its kernels relative to those measured on the GPU named by `kernels`. `stack`: its name
    (spec/stacks). In steps of more than `large_step` tokens, exchanges among units run at `exchange_share` of their
    isolated speed.

    `run_start_s`: overhead per run, whatever its number of steps: transfer of arguments, and notification of the host.
    `prompt_start_s`: overhead of a step with prefill, whatever its length: kernels too short to fill the machine.

    `gated_launch`: what launches the kernels of steps whose weights are still arriving, `host` or `device`; empty: as
    for all other steps. Software may launch stage by stage as weights arrive, but whole steps otherwise.

    `carried`: prices of kernels that were not measured on this machine, if its file names a set; `cores`: for a machine
    without GPU whose file has them.

    `fp8_times`: FP8 arithmetic rate over the 16-bit one; 1 for a machine without it, which widens weights.

    `multiprocessors`: per unit, executing a GPU's thread blocks; 0 if not given.

    `flops_per_byte`: for CPUs of unknown speed, how much their kernels compute for the rows of a step in the time in
    which they read a byte of weights; `few_flops_per_byte`: the same for the first four rows.

    `power_w`: rated power of the units in watts, 0 if not given; `power_source` says what it includes (seldom the
    host). `price`: of one machine, given by the user in any currency; 0 if not given.
    """

    name: str
    flops_per_s: float
    flops_source: str
    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    launch_host_s: float
    launch_device_s: float
    launch_source: str
    rule_set: str
    units: int = 1
    notes: tuple[str, ...] = field(default=())
    flops_share: float = 1.0
    flops_share_source: str = ""
    fp8_times: float = 1.0
    program_host_s: float = 0.0
    program_device_s: float = 0.0
    step_host_s: float = 0.0
    step_floor_s: float = 0.0
    prompt_floor_s: float = 0.0
    step_sequence_s: float = 0.0
    run_start_s: float = 0.0
    prompt_start_s: float = 0.0
    gated_launch: str = ""
    kernel_share: float = 1.0
    exchange_share: float = 1.0
    large_step: int = 0
    multiprocessors: int = 0
    peers: Peers | None = None
    grid: SpatialUnits | None = None
    host_links: int = 1
    kernels: str = ""
    carried: Carried | None = None
    cores: Cores | None = None
    flops_per_byte: float = 0.0
    few_flops_per_byte: float = 0.0
    stack: str = ""
    power_w: float = 0.0
    power_source: str = ""
    price: float = 0.0
    unpublished: tuple[Unpublished, ...] = field(default=())

    @property
    def provenance(self) -> str:
        """The provenance of its kernel speeds, in words."""
        if self.kernels:
            return f"kernels measured on {self.kernels}"
        if self.carried is not None:
            return f"what others reach of their peaks, carried over: {self.carried.source}"
        return "the rates of its file"

    @property
    def achieved_flops_per_s(self) -> float:
        """Arithmetic rate that kernels reach."""
        return self.flops_per_s * self.flops_share

    @property
    def unit_flops_per_s(self) -> float:
        """Physical peak of one unit."""
        return self.flops_per_s / self.units

    def unit_bytes_per_s(self, tier: str) -> float:
        """Physical bandwidth of a tier per unit; the whole bandwidth if units share the tier."""
        found = self.tier(tier)
        return found.bytes_per_s / (self.units if found.per_unit else 1)

    def launch_s(self, orchestration: str, configured: float = 0.0) -> float:
        """Program load, argument load and execute of one kernel, in seconds.

        `configured`: the share of the grid that the program configures, 0 to 1; 0 if it is already loaded.
        """
        if orchestration == "host":
            return self.launch_host_s + configured * self.program_host_s
        return self.launch_device_s + configured * self.program_device_s

    def tier(self, name: str) -> Tier:
        """The tier of that name. Raises KeyError."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise KeyError(f"{self.name} has no tier {name}; it has {', '.join(t.name for t in self.tiers)}")

    def link(self, src: str, dst: str) -> Link:
        """The link from `src` to `dst`. Raises KeyError."""
        for link in self.links:
            if (link.src, link.dst) == (src, dst):
                return link
        raise KeyError(f"{self.name} has no link {src} -> {dst}")

    @property
    def weight_tiers(self) -> tuple[str, ...]:
        """Tiers that can hold whole experts, nearest first: all but sram."""
        return tuple(t.name for t in self.tiers if t.name != "sram")

    @property
    def run_tier(self) -> str:
        """The tier that experts run from."""
        return next(tier.name for tier in self.tiers if tier.name != "sram")

    @property
    def home_tier(self) -> str:
        """The lowest tier, where all experts are stored."""
        return self.weight_tiers[-1]

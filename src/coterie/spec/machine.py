"""MachineSpec: the description of a device that policies may read. Tiers are listed nearest first.

    total, physical     what the fields hold: all units together, as published
    achieved            times the share that software was seen to reach (`share`, with its own source)
    per unit            divided by `units` (sockets, GPUs), where the number is the units' own

Knows nothing about where the numbers come from (machines/*.toml and this_machine.py say that).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory. `bytes_per_s` is its physical read bandwidth, 0 where unknown; `share` of it can be achieved.

    `per_unit`: each unit has its own part (HBM); otherwise all units see one (the host's DRAM).
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
        """What streaming kernels get."""
        return self.bytes_per_s * self.share


@dataclass(frozen=True, slots=True)
class Link:
    """The way between two tiers, from `src` to `dst`. A copy draws on the bandwidth of both tiers too."""

    src: str
    dst: str
    bytes_per_s: float
    latency_s: float
    source: str
    share: float = 1.0
    share_source: str = ""

    @property
    def achieved_bytes_per_s(self) -> float:
        """What a copy gets."""
        return self.bytes_per_s * self.share


@dataclass(frozen=True, slots=True)
class Peers:
    """How units reach each other: each sends `bytes_per_s` while it receives as much; a message costs `latency_s` more.

    `library` names the collectives whose measured times apply (spec/calibration), empty where none were measured.
    """

    bytes_per_s: float
    latency_s: float
    source: str
    share: float = 1.0
    share_source: str = ""
    library: str = ""

    @property
    def achieved_bytes_per_s(self) -> float:
        """What one unit sends to its neighbour."""
        return self.bytes_per_s * self.share


@dataclass(frozen=True, slots=True)
class SpatialUnits:
    """The grid of one unit of a dataflow machine. `*_share`: how much of it mapped programs were seen to use.

    A PMU reads `pmu_bytes_per_cycle` and writes as much in each cycle. Source of the form: the paper, section IV.
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
        """Peak of one PCU: a multiply and an add per lane, stage and cycle."""
        return 2.0 * self.lanes * self.stages * self.clock_hz

    @property
    def sram_bytes(self) -> int:
        """On-chip memory of one unit."""
        return self.pmus * self.pmu_bytes


@dataclass(frozen=True, slots=True)
class KernelRates:
    """What a kernel of one family takes: `fixed_s`, and the longer of flops and bytes at these shares of the peaks."""

    fixed_s: float
    flops_share: float
    bytes_share: float


@dataclass(frozen=True, slots=True)
class Carried:
    """What kernels reached on other machines, carried over to one on which none was measured; by family of kernels.

    `gemm` is every product's, and that of what only goes over its operands; `gemm_fp8` is of products with weights of
    FP8 on a machine with arithmetic for them, at shares of this. `source` says where they were measured.
    `own_flops`, `own_bytes`: that share of a peak was reached on the machine itself, and attention's is in proportion.
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
    """The cores of a machine that computes with these alone: a thread on each of `threads`.

    `bytes_per_s`: what one core can read, however many channels are idle. Threads wait for each other at the end of a
    region, `barrier_s` for each of them.
    """

    threads: int
    bytes_per_s: float
    barrier_s: float


@dataclass(frozen=True, slots=True)
class Unpublished:
    """A number that nobody published, as it stands in the machine's file: a value and the range it is in.

    `key` names it (`launch_device`, `peers.bandwidth`); numbers are in base units, of all units together.
    """

    key: str
    low: float
    value: float
    high: float
    source: str


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A device: peak arithmetic, tiers nearest first, links, launch costs, and the rule set by which it fuses.

    `run_tier`: where programs read weights; `home_tier`: the lowest, where every expert has its bytes.
    Source of the three-tier form: the paper, section IV; launch kinds: section IV-D.

    launch = program load + argument load + execute. `launch_*_s` are the last two; `program_*_s` loads a configuration
    of all units' grids, a smaller one in proportion.

    Software: `step_host_s` and, for each sequence, `step_sequence_s` are its work between two steps; a step takes no
    less than `step_floor_s`, in which it issues the kernels one by one, and one that reads prompts no less than
    `prompt_floor_s`; `kernel_share` is how fast its kernels are next to those measured on the GPU that `kernels` names;
    `stack` is its name (spec/stacks). In steps of more than `large_step` tokens exchanges among units run at
    `exchange_share` of the speed that they have alone.

    A run takes `run_start_s` besides its launches, however many steps it has: its words cross, and the host hears of
    its end. A step that reads prompts takes `prompt_start_s` more, however long these are: kernels too short to fill
    the machine.

    `gated_launch`: who starts the kernels of a step whose weights are still coming, host or device; empty: who starts
    those of all others. Software may start each stage when it is there, where it starts whole steps otherwise.

    `carried`: what prices kernels that were not measured on this machine, where its file names other machines; `cores`
    of a machine without GPU, where its file counts them.

    `fp8_times`: arithmetic of FP8 is so many times that of 16 bits; 1 where a machine has none, and widens weights.

    `multiprocessors` of one unit run a GPU's thread blocks, 0 where the file does not say.

    `flops_per_byte`: of processors whose speeds nobody gives, what their kernels compute for rows of a step while they
    read a byte of weights; `few_flops_per_byte`, likewise, for the first four rows.

    `power_w`: what the units are rated at, in watts; `power_source` says of what, since a host is seldom in it; 0 where
    the file does not say. `price`: of one machine, as its user said and in the user's currency; 0 where nobody did.
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
    def known_by(self) -> str:
        """Where the speed of its kernels is from, in words."""
        if self.kernels:
            return f"kernels measured on {self.kernels}"
        if self.carried is not None:
            return f"what others reach of their peaks, carried over: {self.carried.source}"
        return "the rates of its file"

    @property
    def achieved_flops_per_s(self) -> float:
        """What kernels get."""
        return self.flops_per_s * self.flops_share

    @property
    def unit_flops_per_s(self) -> float:
        """Physical peak of one unit."""
        return self.flops_per_s / self.units

    def unit_bytes_per_s(self, tier: str) -> float:
        """Physical bandwidth of one unit's part of a tier; all of it where units share the tier."""
        found = self.tier(tier)
        return found.bytes_per_s / (self.units if found.per_unit else 1)

    def launch_s(self, orchestration: str, configured: float = 0.0) -> float:
        """Program load, argument load and execute of one kernel, in seconds.

        `configured` is the share of the grid that its program sets up, 0 to 1; 0 when it is loaded already.
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
        """Tiers that hold whole experts, nearest first: all but sram."""
        return tuple(t.name for t in self.tiers if t.name != "sram")

    @property
    def run_tier(self) -> str:
        """The tier from which an expert runs."""
        return next(tier.name for tier in self.tiers if tier.name != "sram")

    @property
    def home_tier(self) -> str:
        """The lowest tier."""
        return self.weight_tiers[-1]

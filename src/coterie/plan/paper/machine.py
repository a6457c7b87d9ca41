"""The paper's machines from their files, and zoo models mapped to them and priced step by step.

Knows nothing about published results: its values are predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from coterie.core.shapes import Sizes
from coterie.device import wait_for
from coterie.devices.modelled.device import ModelledDevice, Orchestration
from coterie.devices.modelled.price import step_time
from coterie.devices.modelled.shard import rank_program
from coterie.devices.modelled.step import StepTime
from coterie.graph.compile import compile_graph
from coterie.graph.program import Program
from coterie.models.zoo import zoo_graph, zoo_model
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec

FILES = {"SN40L": "sn40l-node", "A100": "dgx-a100", "H100": "dgx-h100"}
SECTION, CACHE = "section", "cache"


@cache
def spec(name: str) -> MachineSpec:
    """A machine by file name, or by its name in the paper's figures."""
    return load_machine(FILES.get(name, name))


@cache
def program(model: str, rule_set: str) -> Program:
    """A zoo model, fused by a rule set."""
    return compile_graph(zoo_graph(model), rule_set)


@dataclass(frozen=True, slots=True)
class Expert:
    """A model on an otherwise idle machine: fusion and orchestration as given, mapped if the machine has a grid."""

    spec: MachineSpec
    model: str
    rule_set: str
    orchestration: Orchestration

    def step(self, sizes: Sizes) -> StepTime:
        """The time of one step."""
        return _step(self, sizes)

    def answer_s(self, prompt: int, tokens: int, batch: int = 1) -> float:
        """Time of a request with `tokens` output tokens: prefill gives the first, decode steps the others."""
        first = self.step(Sizes.prefill(batch, prompt)).seconds
        if tokens == 1:
            return first
        # Decode time is linear in the context, except where a kernel's bound changes: use the mean context.
        middle = self.step(Sizes.decode(batch, prompt + tokens // 2)).seconds
        return first + (tokens - 1) * middle


@cache
def _step(expert: Expert, sizes: Sizes) -> StepTime:
    made = _rank(expert.model, expert.rule_set, expert.spec)
    return step_time(expert.spec, made, sizes, orchestration=expert.orchestration, mapped=True)


@cache
def _rank(model: str, rule_set: str, machine: MachineSpec) -> Program:
    """The program of one unit: the model is sharded over all units."""
    return rank_program(machine, program(model, rule_set))


@cache
def weight_bytes(model: str) -> int:
    """Bytes of a model's weights, in the types that its config declares."""
    return zoo_model(model).layout.size_bytes


def switch_s(machine: MachineSpec, size_bytes: int) -> float:
    """Time of a copy from the tier below to the run tier on an idle machine."""
    device = ModelledDevice(machine)
    below, run = machine.weight_tiers[1], machine.run_tier
    copied = device.copy(device.reserve(run, size_bytes), device.reserve(below, size_bytes))
    wait_for(device, copied)
    return device.now()


def with_link_share(machine: MachineSpec, share: float, source: str) -> MachineSpec:
    """The machine with another achieved share, and source, for the bandwidth between its two nearest weight tiers."""
    ends = set(machine.weight_tiers[:2])
    links = tuple(
        replace(link, share=share, share_source=source) if {link.src, link.dst} == ends else link
        for link in machine.links
    )
    tiers = tuple(
        replace(tier, share=share, share_source=source) if tier.name == machine.weight_tiers[1] else tier
        for tier in machine.tiers
    )
    return replace(machine, links=links, tiers=tiers)

"""Samba-CoE on modelled machines: the costs of an expert, a router and a switch, from machine files and Llama-2-7B.

The pipeline is the paper's (section V, Fig. 9): the router runs once for all prompts, then each prompt's expert is
copied and run in sequence, at batch 1. Unlike in the paper's arithmetic, the router of 8 prompts is a batch of 8.

Knows nothing about published results.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from coterie.devices.modelled.device import Orchestration
from coterie.models.zoo import zoo_model
from coterie.plan.paper.arithmetic import BATCHES, DGX, LONG, NODES, SHORT, Node
from coterie.plan.paper.machine import CACHE, FILES, SECTION, Expert, spec, switch_s, weight_bytes, with_link_share
from coterie.plan.paper.row import Fitted, Kind
from coterie.spec.machine import MachineSpec

MODEL = "llama-2-7b"
PROMPTS = {SHORT: 128, LONG: 200}  # input tokens: for chat by NVIDIA's page; for translation as many as output tokens
# The node's file derives its share of DDR bandwidth from the paper's switch time, a result; section VI-C gives a rate.
DDR_RATE_BYTES_PER_S = 1e12
DDR_SOURCE = "over 1 TB/s from DDR to HBM: arXiv 2405.07518, section VI-C"
RULE_SETS = {"SN40L": SECTION, "A100": CACHE, "H100": CACHE}
ORCHESTRATION: Orchestration = "device"
PAPERS_STACK = "nemo-2023"  # the software of the paper's DGX figures; its factors are fitted to single GPUs


@cache
def node_spec(name: str, stack: str = "") -> MachineSpec:
    """The machine of a node, independent of the paper's results; `stack`: the software of a DGX."""
    if name != "SN40L":
        return spec(f"{FILES[name]}:stack={stack}" if stack else name)
    machine = spec(name)
    link = machine.link(machine.weight_tiers[1], machine.run_tier)
    return with_link_share(machine, DDR_RATE_BYTES_PER_S / link.bytes_per_s, DDR_SOURCE)


def expert(name: str, stack: str = "") -> Expert:
    """The model on a node, sharded over all units."""
    return Expert(node_spec(name, stack), MODEL, RULE_SETS[name], ORCHESTRATION)


@cache
def modelled_nodes(stack: str = "") -> Mapping[str, Node]:
    """The three machines, a DGX with the software `stack`."""
    return {name: _node(name, stack) for name in NODES}


def stack_factors() -> tuple[Fitted, ...]:
    """Per-step overheads of the software of the paper's DGX, as fitted to single GPUs (spec/stacks)."""
    found = []
    for name in DGX:
        machine = node_spec(name, PAPERS_STACK)
        to = "NVIDIA's page (reference 57), Llama-2-7B on one GPU, batch 1 to 8; eight GPUs are predicted from it"
        found.append(Fitted(f"{PAPERS_STACK} on {name}: software's work a step", machine.step_host_s * 1e3, "ms", to))
        found.append(Fitted(f"{PAPERS_STACK} on {name}: and a sequence", machine.step_sequence_s * 1e3, "ms", to))
    return tuple(found)


def _node(name: str, stack: str) -> Node:
    machine, model, run = node_spec(name, stack), zoo_model(MODEL), expert(name, stack)
    size_gb = weight_bytes(MODEL) / 1e9
    return Node(
        name=name,
        hbm_gb=machine.tier(machine.run_tier).capacity_bytes / 1e9,
        far_gb=machine.tier(machine.weight_tiers[1]).capacity_bytes / 1e9,
        expert_gb=size_gb,
        kv_gb=model.kv.bytes_per_token * model.max_context / 1e9,
        resident_gb=size_gb,  # the router
        expert_ms={tokens: 1e3 * run.answer_s(PROMPTS[tokens], tokens) for tokens in (SHORT, LONG)},
        router_ms={batch: 1e3 * run.answer_s(PROMPTS[SHORT], SHORT, batch) for batch in BATCHES},
        switch_ms=1e3 * switch_s(machine, weight_bytes(MODEL)),
        kind=Kind.FITTED if stack and name in DGX else Kind.PREDICTED,
    )
